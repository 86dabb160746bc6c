# Photos and names of COCO.
_base_ = ["any.py", "../datasets/coco_photos.py"]

model = dict(recognizer=dict(vocabulary=_base_.ann_file, emission=dict(max_per_image=300)))
