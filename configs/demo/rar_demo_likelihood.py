# RAR on the demo world: the ranker scores the candidates by their likelihood.
_base_ = "rar_demo.py"

model = dict(recognizer=dict(ranker=dict(ask="likelihood", prompt="choose", prompts="{{fileDirname}}/../../demo/prompts.json")))
