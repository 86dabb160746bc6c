# LVIS v1 val, annotated boxes.
_base_ = "boxes.py"

data_root = "data/lvis_v1/"
ann_file = data_root + "annotations/lvis_v1_val.json"
how_to_get = [
    "annotations: https://www.lvisdataset.org/dataset (Validation set), unpacked as "
    + ann_file
    + " (to calibrate, the Training set beside it)",
    "images: http://images.cocodataset.org/zips/train2017.zip and val2017.zip, unpacked in "
    + data_root
    + " (LVIS val uses both)",
]

test_dataloader = dict(
    dataset=dict(type="rar_mmdet.LVISVocabularyDataset", data_root=data_root, ann_file="annotations/lvis_v1_val.json"),
)
test_evaluator = [
    dict(type="rar_mmdet.SparseLVISMetric", ann_file=ann_file, metric="bbox", digits=None),
    dict(type="rar_mmdet.RecognitionMetric", ann_file=ann_file),
]
