# LoRA on the demo's base model, which sees and names and has never ranked (demo/train_base_ranker.py), on a CPU.
# `make finetune-demo` makes the rows, trains on two sources, and prints the table.
#
# The paper's prompt, answered by one name: of a whole list, as in the paper, nine tokens in ten stand behind the name
# that decides, and the loss is mostly theirs.
ranker = dict(
    type="TransformersRanker",
    model="{{fileDirname}}/../../demo/weights/base_ranker",
    ask=dict(type="Likelihood", prompt="paper"),
    batch_size=48,
    loading=dict(dtype="float32", modules=["{{fileDirname}}/../../demo/tiny_vision.py"]),
)
records = "work_dirs/finetune-demo/source-a/data/records.jsonl"
cropper = dict(window="pad")
adapter = dict(rank=64, alpha=128, dropout=0.0)
# The paper's rate is for seven billion weights; a model of two million takes a hundred times more.
schedule = dict(learning_rate=2e-3, batch_size=16, steps=120, save_every=40, look_every=40, look_rows=60, workers=0)
