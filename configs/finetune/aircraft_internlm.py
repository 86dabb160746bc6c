# InternLM-XComposer2-VL-7B learns to rank on FGVC-Aircraft (the paper's Table 6). The rows first:
#   rar-mmdet finetune data configs/classification/fgvc_aircraft.py --mode paper --out data/ranking/aircraft
_base_ = ["../_base_/rankers/internlm_xc2.py", "_base_/paper.py"]

ranker = dict(ask=dict(_delete_=True, type="Generate", prompt="paper"))  # how it is looked at: as it will be asked
records = "data/ranking/aircraft/records.jsonl"
