# RAR on LVIS v1 val, annotated boxes: CLIP ViT-B/16 and a hosted decision model, k = 5. Crops leave this machine.
_base_ = ["clip_lvis.py", "_base_/rankers/hosted.py"]

model = dict(recognizer=dict(ranker=_base_.ranker))
