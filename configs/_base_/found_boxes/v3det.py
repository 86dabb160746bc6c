# Photos and names of V3Det.
_base_ = ["any.py", "../datasets/v3det_photos.py"]

model = dict(recognizer=dict(vocabulary=_base_.ann_file))
