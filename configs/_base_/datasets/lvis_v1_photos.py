# LVIS v1 val for detectors that see the photos themselves (transformers): nothing is resized here.
_base_ = "lvis_v1_boxes.py"

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(batch_size=2, dataset=dict(pipeline=test_pipeline))
