# RAR on LVIS v1 val, annotated boxes: CLIP ViT-B/16 and a model behind an OpenAI-compatible server, k = 5.
_base_ = ["clip_lvis.py", "_base_/rankers/server.py"]

model = dict(recognizer=dict(ranker=_base_.ranker))
