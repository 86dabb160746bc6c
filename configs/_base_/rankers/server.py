# Any OpenAI-compatible server (`vllm serve Qwen/Qwen2.5-VL-7B-Instruct --port 8000`); one token per crop.
ranker = dict(
    type="OpenAIRanker",
    base_url="http://127.0.0.1:8000/v1",
    model="Qwen/Qwen2.5-VL-7B-Instruct",
    ask="letter",
    num_shifts=1,
)
