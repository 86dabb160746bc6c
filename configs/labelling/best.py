# `rar-mmdet label --quality best`: larger models throughout; a GPU with 32 GB.
_base_ = "../_base_/labelling/parts.py"

detector = dict(model="iSEE-Laboratory/llmdet_large")
recognizer = dict(
    encoder=dict(type="Encoder", preset="siglip2-so400m-512"),
    ranker=dict(type="TransformersRanker", model="Qwen/Qwen3-VL-8B-Instruct", ask=dict(type="Likelihood")),
)
parts = dict(
    detector="LLMDet Swin-L, 0.3 B, Apache-2.0",
    encoder="SigLIP 2 So400m/16 512 px, 1.1 B, Apache-2.0",
    ranker="Qwen3-VL-8B, 9 B, Apache-2.0",
)
