# LVIS v1 val for detectors: resized input, original pixels packed beside it.
_base_ = "lvis_v1_boxes.py"

# Of the zoo's checkpoints, whose names the configs give.
zoo = (
    ", a file of MMDetection's model zoo, whose download site is gone: docs/detectors.md tells how a copy is known; "
    "configs/detectors/rar_llmdet_t_lvis.py needs no such file (its detector has a hub id)"
)

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(batch_size=2, dataset=dict(pipeline=test_pipeline))
