# RAR on V3Det val, annotated boxes: CLIP ViT-B/16 and LLaVA-1.5-7B, k = 5 (the paper's Table 4 protocol).
_base_ = ["clip_v3det.py", "_base_/rankers/llava.py"]

model = dict(recognizer=dict(ranker=_base_.ranker))
