# Boxes of any detector of transformers, names by CLIP; a config on top says which data, and one on top of that which
# detector.
_base_ = ["../default_runtime.py", "../retrievers/clip_vitb16.py"]

model = dict(
    type="rar_mmdet.RARDetector",
    detector=dict(type="rar_mmdet.TransformersDetector"),
    recognizer=dict(
        emission=dict(max_per_image=1000, box_score_weight=0.5, nms_iou=0.5),
        **_base_.retriever,
    ),
)
