# Boxes of any detector of transformers, names by CLIP; a config on top says which detector.
_base_ = [
    "../default_runtime.py",
    "../datasets/coco_photos.py",
    "../retrievers/clip_vitb16.py",
]

model = dict(
    type="rar_mmdet.RARDetector",
    detector=dict(type="rar_mmdet.TransformersDetector"),
    recognizer=dict(
        vocabulary=_base_.ann_file,
        emission=dict(max_per_image=300, box_score_weight=0.5, nms_iou=0.5),
        **_base_.retriever,
    ),
)
