# The embedded few-shot world with the base of the fine-tuning demo in place of the demo ranker, asked in the paper's
# words with an example (in context). `make finetune-demo` puts adapters on: --cfg-options ranker.adapter=FOLDER
_base_ = "demo.py"

ranker = dict(
    _delete_=True,
    type="TransformersRanker",
    model="{{fileDirname}}/../../demo/weights/base_ranker",
    adapter=None,
    ask=dict(type="Likelihood", prompt="paper_in_context"),
    batch_size=48,
    loading=dict(dtype="float32", modules=["{{fileDirname}}/../../demo/tiny_vision.py"]),
)
