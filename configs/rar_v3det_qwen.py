# RAR on V3Det val, annotated boxes: CLIP ViT-B/16 and Qwen2.5-VL-7B (in place of the paper's Qwen-VL), k = 5
# (the paper's Table 4 protocol).
_base_ = ["clip_v3det.py", "_base_/rankers/qwen.py"]

model = dict(recognizer=dict(ranker=_base_.ranker))
