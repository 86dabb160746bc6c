# A hosted model in place of the paper's GPT-4V (Table 10): a decision service, one request per crop, no output tokens.
# OPT-IN: every crop leaves this machine for the address below. Nothing is sent before the key is in the environment:
#   export OPENROUTER_API_KEY=...
#
# Prices are in the service's currency per million input tokens; look them up, they change. A crop of 336 px with five
# names was estimated at some 300 tokens, so a million crops at 0.05 would be about 15. `--check` tells what the whole
# run would cost from a few images, `--budget 5` stops in time; answers are kept, and the same command goes on.
# A chat model: type="OpenAIRanker", ask=dict(type="Letter", num_shifts=1), its address, model and prices.
ranker = dict(
    type="DecisionRanker",
    base_url="https://openrouter.ai/api/alpha",
    model="cloudflare/clef-flash",
    form="systemone",
    jpeg_quality=95,
    server=dict(api_key_env="OPENROUTER_API_KEY", max_concurrency=16, price_per_million=0.05, budget=5.0),
)
