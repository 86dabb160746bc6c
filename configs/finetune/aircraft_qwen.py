# Qwen2.5-VL-7B, in place of the paper's Qwen-VL learns to rank on FGVC-Aircraft (the paper's Table 6). The rows first:
#   rar-mmdet finetune data configs/classification/fgvc_aircraft.py --mode paper --out data/ranking/aircraft
_base_ = ["../_base_/rankers/qwen.py", "_base_/paper.py"]

ranker = dict(ask=dict(_delete_=True, type="Generate", prompt="paper"))  # how it is looked at: as it will be asked
records = "data/ranking/aircraft/records.jsonl"
