# RAR on the demo world: the ranker writes a sorted list (the paper's way and prompt).
# Fusion: the defaults; what rar_demo.py has was fitted to likelihoods.
# decisive_margin: as fitted for names and letters; it spares 8 % of the questions (docs/rankers.md).
_base_ = "rar_demo.py"

model = dict(
    recognizer=dict(
        ranker=dict(limits=dict(decisive_margin=0.53), ask=dict(type="Generate", prompt="paper")),
        fusion=dict(_delete_=True, type="LogLikFusion"),
    )
)
