# LVIS v1 val for detectors: resized input, original pixels packed beside it.
_base_ = "lvis_v1_boxes.py"

how_to_get = [
    *_base_.how_to_get,
    "checkpoint: https://github.com/open-mmlab/mmdetection, the model zoo entry of this config's base",
]

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(batch_size=2, dataset=dict(pipeline=test_pipeline))
