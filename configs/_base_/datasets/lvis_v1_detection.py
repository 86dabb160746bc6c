# LVIS v1 val for detectors: resized input, original pixels packed beside it.
data_root = "data/lvis_v1/"
ann_file = data_root + "annotations/lvis_v1_val.json"
how_to_get = [
    "annotations: https://www.lvisdataset.org/dataset (Validation set), unpacked as " + ann_file,
    "images: http://images.cocodataset.org/zips/train2017.zip and val2017.zip, unpacked in "
    + data_root
    + " (LVIS val uses both)",
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
        type="rar_mmdet.LVISVocabularyDataset",
        data_root=data_root,
        ann_file="annotations/lvis_v1_val.json",
        data_prefix=dict(img=""),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_evaluator = [
    dict(type="rar_mmdet.SparseLVISMetric", ann_file=ann_file, metric="bbox", img_ids="seen", digits=None),
    dict(type="rar_mmdet.RecognitionMetric", ann_file=ann_file),
]
