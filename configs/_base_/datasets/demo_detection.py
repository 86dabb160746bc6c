# The embedded demo world for detectors: resized input, original pixels packed beside it.
data_root = "data/demo/"
ann_file = data_root + "annotations/lvis_demo_test.json"
how_to_get = [
    "the demo world: python demo/make_world.py --out data/demo --seed 0",
    "the checkpoint: python demo/train_rpn.py (a few minutes)",
]

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="Resize", scale=(480, 360), keep_ratio=True),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="rar_mmdet.LVISVocabularyDataset",
        data_root=data_root,
        ann_file="annotations/lvis_demo_test.json",
        data_prefix=dict(img=""),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_evaluator = [
    dict(type="rar_mmdet.SparseLVISMetric", ann_file=ann_file, metric="bbox", img_ids="seen", digits=None),
    dict(type="rar_mmdet.RecognitionMetric", ann_file=ann_file),
]
