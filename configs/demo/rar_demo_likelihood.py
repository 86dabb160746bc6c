# RAR on the demo world: the ranker scores the candidates by their likelihood.
# decisive_margin: fitted on the calibration split, where it spares 8 % of the questions (docs/rankers.md).
_base_ = "rar_demo.py"

model = dict(recognizer=dict(ranker=dict(limits=dict(decisive_margin=0.53), ask=dict(prompt="choose"))))
