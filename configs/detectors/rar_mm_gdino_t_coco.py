# RAR behind MM-Grounding-DINO Swin-T: boxes from transformers' detector, names of COCO (zero-shot).
_base_ = "../_base_/found_boxes/coco.py"

how_to_get = [*_base_.how_to_get, "detector: hf download openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit"]

model = dict(
    detector=dict(
        model="openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit",
        prompt="object . animal . person . vehicle . food . tool . furniture . clothing . plant",
    ),
)
