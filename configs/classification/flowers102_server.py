# A model behind a chat server, its letters instead of LLaVA's likelihoods: here `vllm serve` on this machine. A hosted
# chat service takes its address, its model, extra_body=None and a `server` with key, price and budget, as in
# flowers102_hosted.py; photos leave the machine then. `--limit 500` takes a stratified, seeded sample alone.
_base_ = "flowers102.py"

ranker = dict(
    _delete_=True,
    type="OpenAIRanker",
    base_url="http://127.0.0.1:8000/v1",
    model="Qwen/Qwen2.5-VL-7B-Instruct",
    ask=dict(type="Letter", num_shifts=1),
    extra_body=dict(repetition_penalty=1.0),  # Qwen2.5-VL ships 1.05, which punishes names of the prompt
)
