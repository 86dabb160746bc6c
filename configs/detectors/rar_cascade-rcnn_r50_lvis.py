# RAR in Cascade R-CNN: boxes from COCO, names from LVIS.
# Checkpoint: cascade-rcnn_r50_fpn_1x_coco.
_base_ = [
    "mmdet::_base_/models/cascade-rcnn_r50_fpn.py",
    "../_base_/default_runtime.py",
    "../_base_/datasets/lvis_v1_detection.py",
    "../_base_/retrievers/clip_vitb16.py",
]

model = dict(
    roi_head=dict(
        type="rar_mmdet.RARCascadeRoIHead",
        recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
    ),
)
