# The baseline "LLaVA1.5 Finetuning" of the paper's Tables 2 and 8: LLaVA-1.5-7B as a classifier, on few shots alone.
# It answers with the name, and is read by the likelihood of every name, so that no window limits the number of classes.
#   rar-mmdet finetune data configs/classification/flowers102.py --mode names --shots 4 --seed 1 --out data/names
#   rar-mmdet finetune train configs/finetune/classifier_llava.py --out work_dirs/classifier
#   rar-mmdet classify configs/classification/flowers102.py --rows mllm --shots 4 --seeds 1 \
#       --cfg-options ranker.ask.prompt=name ranker.adapter=work_dirs/classifier/adapter
_base_ = "../_base_/rankers/llava.py"

ranker = dict(ask=dict(_delete_=True, type="Likelihood", prompt="name"))
records = "data/names/records.jsonl"
cropper = dict(window="pad")
adapter = dict(rank=64, alpha=128, dropout=0.05)
# Ours: the paper says nothing of it. A few hundred photos are seen ten times, and none is set aside to look at.
schedule = dict(epochs=10, learning_rate=1e-4, batch_size=16, look_every=0, look_rows=0)
