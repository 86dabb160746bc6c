# RAR on LVIS v1 val, annotated boxes: FG-CLIP 2 in place of CLIP, and InternLM-XComposer2-VL-7B, k = 5.
_base_ = ["fgclip2_lvis.py", "_base_/rankers/internlm_xc2.py"]

model = dict(recognizer=dict(ranker=_base_.ranker))
