# RAR behind RT-DETR R50 (Objects365 and COCO): boxes from transformers' detector, names from V3Det.
_base_ = "../_base_/found_boxes/v3det.py"

how_to_get = [*_base_.how_to_get, "detector: hf download PekingU/rtdetr_r50vd_coco_o365"]

model = dict(
    detector=dict(
        model="PekingU/rtdetr_r50vd_coco_o365",
    ),
)
