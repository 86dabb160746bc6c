# RAR on the demo world: the ranker scores the five best candidates by their likelihood.
# Fusion weight and temperature are fitted on the calibration split, which shares no photo with the test split:
# rar-mmdet calibrate ranker configs/demo/rar_demo_likelihood.py (docs/rankers.md).
_base_ = "clip_demo.py"

model = dict(
    recognizer=dict(
        ranker=dict(
            type="TransformersRanker",
            model="{{fileDirname}}/../../demo/weights/ranker",
            # The only questions it was trained to answer.
            ask=dict(type="Likelihood", prompts="{{fileDirname}}/../../demo/prompts.json"),
            batch_size=32,
            loading=dict(modules=["{{fileDirname}}/../../demo/tiny_vision.py"]),
        ),
        fusion=dict(type="LogLikFusion", alpha=0.95, temperature=1.25),
    )
)
