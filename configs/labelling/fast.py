# `rar-mmdet label --quality fast`: boxes and retrieval, no language model; a CPU will do.
_base_ = "../_base_/labelling/parts.py"

recognizer = dict(encoder=dict(type="Encoder", preset="siglip2-b16-224"))
parts = dict(
    detector="LLMDet Swin-T, 0.2 B, Apache-2.0",
    encoder="SigLIP 2 B/16 224 px, 0.4 B, Apache-2.0",
    ranker="none",
)
