# RAR behind D-FINE-L (COCO): boxes from transformers' detector, names from LVIS.
_base_ = "../_base_/found_boxes/lvis.py"

how_to_get = [*_base_.how_to_get, "detector: hf download ustc-community/dfine-large-coco"]

model = dict(
    detector=dict(
        model="ustc-community/dfine-large-coco",
    ),
)
