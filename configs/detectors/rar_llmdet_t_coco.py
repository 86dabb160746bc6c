# RAR behind LLMDet Swin-T: boxes from transformers' detector, names of COCO (zero-shot).
_base_ = "../_base_/found_boxes/coco.py"

how_to_get = [*_base_.how_to_get, "detector: hf download iSEE-Laboratory/llmdet_tiny"]

model = dict(
    detector=dict(
        model="iSEE-Laboratory/llmdet_tiny",
        prompt="object . animal . person . vehicle . food . tool . furniture . clothing . plant",
    ),
)
