# V3Det val for detectors: resized input, original pixels packed beside it.
data_root = "data/V3Det/"
ann_file = data_root + "annotations/v3det_2023_v1_val.json"
how_to_get = [
    "images and annotations: https://github.com/V3Det/V3Det (v3det_image_download.py), unpacked in " + data_root,
    "checkpoint: https://github.com/open-mmlab/mmdetection, the model zoo entry of this config's base",
]

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="rar_mmdet.V3DetVocabularyDataset",
        data_root=data_root,
        ann_file="annotations/v3det_2023_v1_val.json",
        data_prefix=dict(img=""),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_evaluator = [
    dict(
        type="rar_mmdet.SparseCocoMetric",
        ann_file=ann_file,
        metric="bbox",
        proposal_nums=[300],
        use_mp_eval=True,
        img_ids="seen",
        digits=None,
    ),
    dict(type="rar_mmdet.RecognitionMetric", ann_file=ann_file),
]
