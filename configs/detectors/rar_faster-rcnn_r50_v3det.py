# RAR in the Faster R-CNN of V3Det: its class-agnostic boxes, 13,204 names.
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/default_runtime.py",
    "../_base_/datasets/v3det_detection.py",
    "../_base_/retrievers/clip_vitb16.py",
]

how_to_get = [*_base_.how_to_get, "checkpoint: faster_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x" + _base_.zoo]

model = dict(
    roi_head=dict(
        type="rar_mmdet.RARRoIHead",
        bbox_head=dict(reg_class_agnostic=True),
        recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
    ),
)
