# RAR on V3Det val, annotated boxes: CLIP ViT-B/16 and Qwen2.5-VL-7B (the paper's Qwen-VL has no transformers port), k = 5.
_base_ = "clip_v3det.py"

model = dict(recognizer=dict(ranker=dict(type="TransformersRanker", model="Qwen/Qwen2.5-VL-7B-Instruct")))
