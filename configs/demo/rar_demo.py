# RAR on the demo world: the ranker scores the five best candidates by their likelihood.
_base_ = "clip_demo.py"

model = dict(
    recognizer=dict(
        ranker=dict(type="TransformersRanker", model="{{fileDirname}}/../../demo/weights/ranker", ask="likelihood"),
    )
)
