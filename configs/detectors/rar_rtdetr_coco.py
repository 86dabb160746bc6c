# RAR behind RT-DETR R50: boxes from transformers' detector, names of COCO, on which it was trained (not zero-shot).
_base_ = "../_base_/found_boxes/coco.py"

how_to_get = [*_base_.how_to_get, "detector: hf download PekingU/rtdetr_r50vd_coco_o365"]

model = dict(
    detector=dict(
        model="PekingU/rtdetr_r50vd_coco_o365",
    ),
)
