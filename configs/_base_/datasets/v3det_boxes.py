# V3Det val, annotated boxes; the 13,204 names come from the annotation file.
_base_ = "boxes.py"

data_root = "data/V3Det/"
ann_file = data_root + "annotations/v3det_2023_v1_val.json"
how_to_get = [
    "images and annotations: https://github.com/V3Det/V3Det (v3det_image_download.py), unpacked in " + data_root
]

test_dataloader = dict(
    dataset=dict(
        type="rar_mmdet.V3DetVocabularyDataset", data_root=data_root, ann_file="annotations/v3det_2023_v1_val.json"
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
        digits=None,
    ),
    dict(type="rar_mmdet.RecognitionMetric", ann_file=ann_file),
]
