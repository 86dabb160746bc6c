# RAR behind the demo's own RT-DETR, in transformers' classes. Fusion as fitted in configs/demo/rar_demo_likelihood.py.
_base_ = "clip_rtdetr_demo.py"

model = dict(
    recognizer=dict(
        ranker=dict(
            type="TransformersRanker",
            model="{{fileDirname}}/../../demo/weights/ranker",
            ask=dict(type="Likelihood", prompts="{{fileDirname}}/../../demo/prompts.json"),
            batch_size=32,
            loading=dict(modules=["{{fileDirname}}/../../demo/tiny_vision.py"]),
        ),
        fusion=dict(type="LogLikFusion", alpha=0.95, temperature=1.25),
    ),
)
