# The paper's GPT-4V row (Table 10) with a hosted decision model of today. OPT-IN: each photo is sent to the address
# below, and nothing before the key is in the environment. A row is 2,463 photos; what it costs is told first,
# `--budget 1` stops in time, and the same command goes on. `--limit 500` takes a stratified, seeded sample alone.
#   rar-mmdet classify configs/classification/flowers102_hosted.py --rows gda gda+rar --shots 16 --seeds 1 --budget 1
_base_ = "flowers102.py"

ranker = dict(
    _delete_=True,
    type="DecisionRanker",
    base_url="https://openrouter.ai/api/alpha",
    model="cloudflare/clef-flash",
    form="systemone",
    jpeg_quality=95,
    server=dict(api_key_env="OPENROUTER_API_KEY", max_concurrency=16, price_per_million=0.05, budget=5.0),
)
