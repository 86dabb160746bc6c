# Retrieval only by FG-CLIP 2 on LVIS v1 val, annotated boxes.
_base_ = ["_base_/default_runtime.py", "_base_/datasets/lvis_v1_boxes.py", "_base_/retrievers/fgclip2_base.py"]

model = dict(
    type="rar_mmdet.ProposalRecognizer",
    recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
)
