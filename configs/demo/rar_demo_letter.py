# RAR on the demo world: the ranker picks one of the letters A to E, averaged over all cyclic shifts.
# Fusion: the defaults; what rar_demo.py has was fitted to likelihoods.
# decisive_margin: fitted on the calibration split, where it spares 8 % of the questions (docs/rankers.md).
_base_ = "rar_demo.py"

model = dict(
    recognizer=dict(
        ranker=dict(decisive_margin=0.53, ask="letter", prompts="{{fileDirname}}/../../demo/prompts.json"),
        fusion=dict(_delete_=True, type="LogLikFusion"),
    )
)
