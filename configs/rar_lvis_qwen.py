# RAR on LVIS v1 val, annotated boxes: CLIP ViT-B/16 and Qwen2.5-VL-7B, k = 5 (the paper's Table 3 protocol).
_base_ = ["clip_lvis.py", "_base_/rankers/qwen.py"]

model = dict(recognizer=dict(ranker=_base_.ranker))
