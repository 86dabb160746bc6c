# Qwen2.5-VL-7B (`hf download Qwen/Qwen2.5-VL-7B-Instruct`) in place of the paper's Qwen-VL, which transformers does not
# know; docs/rankers.md says how to reach that one. 336 px: 144 visual tokens per crop.
ranker = dict(
    type="TransformersRanker",
    model="Qwen/Qwen2.5-VL-7B-Instruct",
    ask=dict(type="Likelihood"),
    image_size=336,
    batch_size=32,
)
