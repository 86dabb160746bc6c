# RAR behind D-FINE-L: boxes from transformers' detector, names of COCO, on which it was trained (not zero-shot).
_base_ = "../_base_/found_boxes/coco.py"

how_to_get = [*_base_.how_to_get, "detector: hf download ustc-community/dfine-large-coco"]

model = dict(
    detector=dict(
        model="ustc-community/dfine-large-coco",
    ),
)
