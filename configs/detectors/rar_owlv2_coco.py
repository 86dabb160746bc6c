# RAR behind OWLv2 B/16: boxes from transformers' detector, names of COCO (zero-shot).
_base_ = "../_base_/found_boxes/coco.py"

how_to_get = [*_base_.how_to_get, "detector: hf download google/owlv2-base-patch16-ensemble"]

model = dict(
    detector=dict(
        model="google/owlv2-base-patch16-ensemble",
        prompt="object . animal . person . vehicle . food . tool . furniture . clothing . plant",
    ),
)
