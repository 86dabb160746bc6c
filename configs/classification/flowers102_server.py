# The row of a hosted model (the paper's GPT-4V): its letters instead of LLaVA's likelihoods. Each photo is sent to the
# server of `base_url`, here one on this machine. A hosted service: its address, its model, extra_body=None, and the key
# in OPENAI_API_KEY; photos leave the machine then. `--limit 500` asks about a stratified, seeded sample alone.
_base_ = "flowers102.py"

ranker = dict(
    _delete_=True,
    type="OpenAIRanker",
    base_url="http://127.0.0.1:8000/v1",
    model="Qwen/Qwen2.5-VL-7B-Instruct",
    ask=dict(type="Letter", num_shifts=1),
    extra_body=dict(repetition_penalty=1.0),  # Qwen2.5-VL ships 1.05, which punishes names of the prompt
)
