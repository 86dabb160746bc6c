# RAR on the demo world: the ranker writes a sorted list (the paper's way and prompt).
_base_ = "rar_demo.py"

model = dict(recognizer=dict(ranker=dict(ask="generate", prompt="paper", prompts="{{fileDirname}}/../../demo/prompts.json")))
