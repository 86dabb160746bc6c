# RAR on V3Det val, annotated boxes: CLIP ViT-B/16 and LLaVA-1.5-7B, k = 5 (the paper's Table 4).
_base_ = "clip_v3det.py"

model = dict(recognizer=dict(ranker=dict(type="TransformersRanker", model="llava-hf/llava-1.5-7b-hf")))
