# Retrieval only on the demo world, annotated boxes.
_base_ = ["../_base_/default_runtime.py", "../_base_/datasets/demo_boxes.py", "../_base_/models/clip_demo.py"]

model = dict(recognizer=dict(vocabulary={{_base_.ann_file}}))
