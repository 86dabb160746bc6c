# Retrieval only behind the demo's own RT-DETR, in transformers' classes: no checkpoint is needed.
_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/demo_photos.py",
    "../_base_/retrievers/clip_demo.py",
]

model = dict(
    type="rar_mmdet.RARDetector",
    detector=dict(type="rar_mmdet.TransformersDetector", model="{{fileDirname}}/../../demo/weights/detector"),
    selection=dict(max_regions=30, nms_iou=0.7),
    recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
)
