# The classifier baseline (classifier_llava.py) at the size of a CPU: the demo's base model on four photos of each class
# of the embedded few-shot world. It answers with the name, and is read by the likelihood of all 48.
#   python demo/make_few_shot_world.py
#   rar-mmdet finetune data configs/classification/demo.py --mode names --shots 4 --seed 1 --ask likelihood \
#       --prompt name --out work_dirs/classifier-demo/data
#   rar-mmdet finetune train configs/finetune/classifier_demo.py --out work_dirs/classifier-demo --device cpu
#   rar-mmdet classify configs/classification/demo_base.py --rows mllm text gda --shots 4 --seeds 1 \
#       --cfg-options ranker.ask.prompt=name ranker.adapter=work_dirs/classifier-demo/adapter
_base_ = "demo.py"

ranker = dict(ask=dict(prompt="name"))
records = "work_dirs/classifier-demo/data/records.jsonl"
schedule = dict(look_every=0, look_rows=0)  # all of the few photos are learned from, ten times
