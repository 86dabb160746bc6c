# RAR on the demo world: the ranker says yes or no to each candidate.
# Fusion and decisive_margin: fitted on the calibration split; the margin spares 8 % of the questions (docs/rankers.md).
_base_ = "rar_demo.py"

model = dict(
    recognizer=dict(
        ranker=dict(decisive_margin=0.53, ask="yesno", prompts="{{fileDirname}}/../../demo/prompts.json"),
        fusion=dict(alpha=0.73, temperature=1.55),
    )
)
