# The embedded demo world, annotated boxes.
_base_ = "boxes.py"

data_root = "data/demo/"
ann_file = data_root + "annotations/lvis_demo_test.json"
how_to_get = ["the demo world: python demo/make_world.py --out data/demo --seed 0"]

test_dataloader = dict(
    num_workers=2,
    dataset=dict(
        type="rar_mmdet.LVISVocabularyDataset", data_root=data_root, ann_file="annotations/lvis_demo_test.json"
    ),
)
test_evaluator = [
    dict(type="rar_mmdet.SparseLVISMetric", ann_file=ann_file, metric="bbox", digits=None),
    dict(type="rar_mmdet.RecognitionMetric", ann_file=ann_file),
]
