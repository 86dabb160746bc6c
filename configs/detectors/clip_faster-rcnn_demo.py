# Retrieval only behind a tiny Faster R-CNN whose RPN demo/train_rpn.py trains on the demo world. No bbox head:
# proposals stand as they are.
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/default_runtime.py",
    "../_base_/datasets/demo_detection.py",
    "../_base_/retrievers/clip_demo.py",
]

model = dict(
    # Strides from 8 up: the finest level of the stock FPN would take three quarters of a CPU's time.
    backbone=dict(depth=18, base_channels=16, out_indices=(1, 2, 3), frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[2, 4], strides=[8, 16, 32, 64]),
    ),
    roi_head=dict(
        type="rar_mmdet.RARRoIHead",
        bbox_head=None,
        selection=dict(max_regions=30, nms_iou=0.5),
        recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
    ),
)
