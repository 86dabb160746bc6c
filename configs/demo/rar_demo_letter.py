# RAR on the demo world: the ranker picks one of the letters A to E, averaged over all cyclic shifts.
_base_ = "rar_demo.py"

model = dict(recognizer=dict(ranker=dict(ask="letter", prompts="{{fileDirname}}/../../demo/prompts.json")))
