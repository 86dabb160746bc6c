# RAR on the demo world: the ranker says yes or no to each candidate.
# Fusion and decisive_margin: fitted on the calibration split; it spares 11 % of the questions (docs/rankers.md).
_base_ = "rar_demo.py"

model = dict(
    recognizer=dict(
        ranker=dict(limits=dict(decisive_margin=0.46), ask=dict(type="YesNo")),
        fusion=dict(alpha=0.87, temperature=1.77),
    )
)
