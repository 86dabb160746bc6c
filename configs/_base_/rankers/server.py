# Any OpenAI-compatible server (`vllm serve Qwen/Qwen2.5-VL-7B-Instruct --port 8000`); one token per crop.
ranker = dict(
    type="OpenAIRanker",
    base_url="http://127.0.0.1:8000/v1",
    model="Qwen/Qwen2.5-VL-7B-Instruct",
    ask=dict(type="Letter", num_shifts=1),
    # vLLM applies the settings a model ships; Qwen2.5-VL's 1.05 punishes names of the prompt. Hosted services
    # that refuse the field: extra_body=None.
    extra_body=dict(repetition_penalty=1.0),
)
