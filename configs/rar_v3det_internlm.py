# RAR on V3Det val, annotated boxes: CLIP ViT-B/16 and InternLM-XComposer2-VL-7B, k = 5 (the paper's Table 4).
_base_ = ["clip_v3det.py", "_base_/rankers/internlm_xc2.py"]

model = dict(recognizer=dict(ranker=_base_.ranker))
