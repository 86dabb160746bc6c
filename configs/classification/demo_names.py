# The embedded few-shot world with its names hidden (`make names-demo`, docs/names.md).
_base_ = "demo.py"

names = dict(
    nouns="data/demo_dictionary",  # demo/make_dictionary.py: the world's 600 names among 5,000 others
    # The demo's ranker was trained on one question that wants a name, and to write no prose; it says how likely each
    # name is as the answer. Which 48 of the 600 names are right is nowhere in here.
    asker=dict(
        type="TransformersRanker",
        model="{{fileDirname}}/../../demo/weights/ranker",
        ask=dict(type="Likelihood", prompt="name", prompts="{{fileDirname}}/../../demo/prompts.json"),
        batch_size=32,
        loading=dict(modules=["{{fileDirname}}/../../demo/tiny_vision.py"]),
    ),
    pattern="{pattern} {colour} {shape}",
    attributes=dict(
        pattern=["plain", "striped", "dotted", "checkered", "ringed"],
        colour=["red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "gray"],
        shape=[
            *("circle", "square", "triangle", "diamond", "pentagon", "hexagon"),
            *("star", "cross", "heart", "crescent", "arrow", "drop"),
        ],
    ),
    shortlist=24,
    views=[dict(window="pad"), dict(window="cover")],
    # Chosen on the val part: two guesses a photo, and a name stays when two photos share it.
    guesses=2,
    min_support=2,
    sentence_encoder="encoder",  # no sentence model is in the checkout: sACC here compares with nothing published
)
