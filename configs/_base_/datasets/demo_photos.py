# The embedded demo world for detectors that see the photos themselves: nothing is resized here.
_base_ = "demo_boxes.py"

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(batch_size=4, dataset=dict(pipeline=test_pipeline))
