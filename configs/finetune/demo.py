# LoRA on the demo's base model, which sees and names and has never ranked (demo/train_base_ranker.py), on a CPU.
# `make finetune-demo` makes the rows, trains on two sources, and prints the table.
ranker = dict(
    type="TransformersRanker",
    model="{{fileDirname}}/../../demo/weights/base_ranker",
    ask=dict(type="Generate", prompt="paper"),
    batch_size=48,
    loading=dict(dtype="float32", modules=["{{fileDirname}}/../../demo/tiny_vision.py"]),
)
records = "work_dirs/finetune-demo/source-a/data/records.jsonl"
cropper = dict(window="pad")
adapter = dict(rank=16, alpha=32, dropout=0.0)
# The paper's rate is for seven billion weights; a model of two million takes a hundred times more.
schedule = dict(learning_rate=2e-3, batch_size=32, steps=240, save_every=80, look_every=80, look_rows=100, workers=0)
