# Retrieval only on the demo world, annotated boxes.
_base_ = ["../_base_/default_runtime.py", "../_base_/datasets/demo_boxes.py", "../_base_/retrievers/clip_demo.py"]

model = dict(
    type="rar_mmdet.ProposalRecognizer",
    recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
)
