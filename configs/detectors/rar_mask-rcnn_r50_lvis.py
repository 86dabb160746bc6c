# RAR in Mask R-CNN trained on LVIS: its 1,203 masks for each box go with our names.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "../_base_/default_runtime.py",
    "../_base_/datasets/lvis_v1_detection.py",
    "../_base_/retrievers/clip_vitb16.py",
]

how_to_get = [
    *_base_.how_to_get,
    "checkpoint: mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1-aa78ac3d.pth" + _base_.zoo,
]

model = dict(
    roi_head=dict(
        type="rar_mmdet.RARRoIHead",
        bbox_head=dict(num_classes=1203),
        mask_head=dict(num_classes=1203),
        recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
    ),
)
test_evaluator = [
    dict(
        type="rar_mmdet.SparseLVISMetric",
        ann_file=_base_.ann_file,
        metric=["bbox", "segm"],
        digits=None,
    ),
]
