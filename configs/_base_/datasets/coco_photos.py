# COCO val2017 for detectors that see the photos themselves (transformers): nothing is resized here.
_base_ = "boxes.py"

data_root = "data/coco/"
ann_file = data_root + "annotations/instances_val2017.json"
how_to_get = [
    "images and annotations: http://images.cocodataset.org/zips/val2017.zip and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpacked in " + data_root
]

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(
    batch_size=2,
    dataset=dict(
        type="rar_mmdet.CocoVocabularyDataset",
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        pipeline=test_pipeline,
    ),
)
# COCO's own rule: the 100 best detections of each image and category. Zero-shot where the detector was not trained on
# COCO's boxes or names (LLMDet, MM-Grounding-DINO, OWLv2: see each config).
test_evaluator = [
    dict(type="rar_mmdet.SparseCocoMetric", ann_file=ann_file, metric="bbox", digits=None),
    dict(type="rar_mmdet.RecognitionMetric", ann_file=ann_file),
]
