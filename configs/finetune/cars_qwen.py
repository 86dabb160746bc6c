# Qwen2.5-VL-7B, in place of the paper's Qwen-VL learns to rank on Stanford Cars (the paper's Table 6). The rows first:
#   rar-mmdet finetune data configs/classification/stanford_cars.py --mode paper --out data/ranking/cars
_base_ = ["../_base_/rankers/qwen.py", "_base_/paper.py"]

ranker = dict(ask=dict(_delete_=True, type="Generate", prompt="paper"))  # how it is looked at: as it will be asked
records = "data/ranking/cars/records.jsonl"
