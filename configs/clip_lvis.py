# Retrieval only on LVIS v1 val, annotated boxes: what the ranker has to beat.
_base_ = ["_base_/default_runtime.py", "_base_/datasets/lvis_v1_boxes.py", "_base_/retrievers/clip_vitb16.py"]

model = dict(
    type="rar_mmdet.ProposalRecognizer",
    recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
)
