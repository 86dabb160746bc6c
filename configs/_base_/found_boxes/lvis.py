# Photos and names of LVIS; fixed AP, as others report found boxes.
_base_ = ["any.py", "../datasets/lvis_v1_photos.py"]

model = dict(recognizer=dict(vocabulary=_base_.ann_file))
test_evaluator = [
    dict(type="rar_mmdet.SparseLVISMetric", ann_file=_base_.ann_file, metric="bbox", digits=None, fixed_ap=True),
    dict(type="rar_mmdet.RecognitionMetric", ann_file=_base_.ann_file),
]
