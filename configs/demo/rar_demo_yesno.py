# RAR on the demo world: the ranker says yes or no to each candidate.
_base_ = "rar_demo.py"

model = dict(recognizer=dict(ranker=dict(ask="yesno", prompts="{{fileDirname}}/../../demo/prompts.json")))
