# Retrieval behind an RT-DETR that also knows the names of the demo's frequent classes. How to train it:
# docs/detectors.md.
_base_ = "clip_rtdetr_demo.py"

how_to_get = [*_base_.how_to_get, "detector: python demo/train_detector.py --names f ..., as docs/detectors.md says"]

model = dict(detector=dict(model="work_dirs/named_detector"))
