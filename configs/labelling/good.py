# `rar-mmdet label --quality good`: a small language model ranks the five best words of each box; a GPU with 12 GB.
_base_ = "../_base_/labelling/parts.py"

recognizer = dict(
    encoder=dict(type="Encoder", preset="siglip2-l16-384"),
    ranker=dict(type="TransformersRanker", model="Qwen/Qwen3-VL-2B-Instruct", ask=dict(type="Likelihood")),
)
parts = dict(
    detector="LLMDet Swin-T, 0.2 B, Apache-2.0",
    encoder="SigLIP 2 L/16 384 px, 0.9 B, Apache-2.0",
    ranker="Qwen3-VL-2B, 2 B, Apache-2.0",
)
