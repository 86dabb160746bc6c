# RegionCLIP on LVIS v1 val, annotated boxes (the paper's Table 3, row RegionCLIP), zero-shot as its script runs it.
# Score: cosine / 0.01, softmax over the names (_base_/retrievers/regionclip_rn50x4.py).
# Emission: every pair of box and class of at least 1e-4, thinned per class at IoU 0.5 even between annotated boxes,
# the best 300; neither Soft-NMS nor `bbox_pred`, which its script does not use with annotated boxes.
# What differs from the published pipeline: docs/encoders.md.
_base_ = ["_base_/default_runtime.py", "_base_/datasets/lvis_v1_boxes.py", "_base_/retrievers/regionclip_rn50x4.py"]

model = dict(
    type="rar_mmdet.ProposalRecognizer",
    recognizer=dict(
        vocabulary=_base_.ann_file,
        **_base_.retriever,
        emission=dict(type="TopPairs", max_per_image=300, nms_iou=0.5, min_score=1e-4),
    ),
)
