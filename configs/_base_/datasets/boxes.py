# Annotated boxes as proposals: the paper's zero-shot recognition. Images are not resized. Files below say which data.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="rar_mmdet.ProposalsFromAnnotations"),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(data_prefix=dict(img=""), test_mode=True, pipeline=test_pipeline),
)
