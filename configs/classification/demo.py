# The embedded few-shot world: classes that neither of the demo's models was trained on (demo/make_few_shot_world.py).
# `make classify-demo` makes the world and prints the table.
dataset = dict(type="folders", root="data/demo_few_shot")
encoder = dict(type="OpenClipEncoder", model="local-dir:{{fileDirname}}/../../demo/weights/clip")
cropper = dict(window="cover")
ranker = dict(
    type="TransformersRanker",
    model="{{fileDirname}}/../../demo/weights/ranker",
    # The only questions it was trained to answer.
    ask=dict(type="Likelihood", prompts="{{fileDirname}}/../../demo/prompts.json"),
    batch_size=32,
    loading=dict(modules=["{{fileDirname}}/../../demo/tiny_vision.py"]),
)
ranker_cropper = dict(window="pad")
fusion = dict(type="LogLikFusion", alpha=0.95, temperature=1.25)  # as fitted for boxes (configs/demo/rar_demo.py)
num_candidates = 5
