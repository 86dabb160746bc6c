# RegionCLIP on LVIS v1 val, annotated boxes (the paper's Table 3, row RegionCLIP): its own score and its own emission.
_base_ = ["_base_/default_runtime.py", "_base_/datasets/lvis_v1_boxes.py", "_base_/retrievers/regionclip_rn50x4.py"]

model = dict(
    type="rar_mmdet.ProposalRecognizer",
    recognizer=dict(
        vocabulary=_base_.ann_file,
        **_base_.retriever,
        # Every pair of box and class, thinned class by class at IoU 0.5 even between annotated boxes, the best 300. Its
        # script also drops pairs below 1e-4, which would stand behind all others.
        emission=dict(type="TopPairs", max_per_image=300, nms_iou=0.5),
    ),
)
