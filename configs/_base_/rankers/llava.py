# LLaVA-1.5-7B (`hf download llava-hf/llava-1.5-7b-hf`), the candidates' likelihoods. The paper's own way to ask is
# ask=dict(type="Generate", prompt="paper"), loading=dict(chat_template="llava_v0").
ranker = dict(
    type="TransformersRanker",
    model="llava-hf/llava-1.5-7b-hf",
    ask=dict(type="Likelihood"),
    batch_size=16,
    loading=dict(chat_template="llava_v1"),
)
