# RAR behind LLMDet Swin-T: boxes from transformers' detector, names from V3Det.
_base_ = "../_base_/found_boxes/v3det.py"

how_to_get = [*_base_.how_to_get, "detector: hf download iSEE-Laboratory/llmdet_tiny"]

model = dict(
    detector=dict(
        model="iSEE-Laboratory/llmdet_tiny",
        prompt="object . animal . person . vehicle . food . tool . furniture . clothing . plant",
    ),
)
