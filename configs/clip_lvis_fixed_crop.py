# clip_lvis.py with one crop scale for all sizes, the best one of the paper's Table 11 (with blur), in place of its
# adaptive crop.
_base_ = "clip_lvis.py"

model = dict(recognizer=dict(cropper=dict(scale=dict(_delete_=True, type="FixedScale", factor=1.6))))
