# RAR in Faster R-CNN: proposals and refinement from COCO, names from LVIS.
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/default_runtime.py",
    "../_base_/datasets/lvis_v1_detection.py",
    "../_base_/retrievers/clip_vitb16.py",
]

how_to_get = [*_base_.how_to_get, "checkpoint: faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth" + _base_.zoo]

model = dict(
    roi_head=dict(
        type="rar_mmdet.RARRoIHead",
        recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
    ),
)
