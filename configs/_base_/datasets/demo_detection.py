# The embedded demo world for detectors: resized input, original pixels packed beside it.
_base_ = "demo_boxes.py"

how_to_get = [*_base_.how_to_get, "the checkpoint: python demo/train_rpn.py (a few minutes)"]

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="Resize", scale=(480, 360), keep_ratio=True),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(batch_size=4, dataset=dict(pipeline=test_pipeline))
