# RAR in the Faster R-CNN of V3Det: its class-agnostic boxes, 13,204 names.
# Checkpoint: faster_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x.
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/default_runtime.py",
    "../_base_/datasets/v3det_detection.py",
    "../_base_/retrievers/clip_vitb16.py",
]

model = dict(
    roi_head=dict(
        type="rar_mmdet.RARRoIHead",
        bbox_head=dict(reg_class_agnostic=True),
        recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
    ),
)
