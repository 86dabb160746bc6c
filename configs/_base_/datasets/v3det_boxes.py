# V3Det val, annotated boxes as proposals; the 13,204 names come from the annotation file. Images are not resized.
data_root = "data/V3Det/"
ann_file = data_root + "annotations/v3det_2023_v1_val.json"
how_to_get = [
    "images and annotations: https://github.com/V3Det/V3Det (v3det_image_download.py), unpacked in " + data_root
]

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
    dataset=dict(
        type="rar_mmdet.V3DetVocabularyDataset",
        data_root=data_root,
        ann_file="annotations/v3det_2023_v1_val.json",
        data_prefix=dict(img=""),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
# Two protocols: MMDetection's plain COCO rule with 300 detections, and, with `category_tree`, V3Det's own.
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
