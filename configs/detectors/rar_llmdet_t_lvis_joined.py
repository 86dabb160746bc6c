# LLMDet Swin-T asked for the 1,203 names of LVIS in chunks of 40, and its own scores joined with those of CLIP. The
# weights are defaults: fit them by rar-mmdet calibrate detector CONFIG --annotations lvis_v1_train.json --images DIR.
_base_ = "rar_llmdet_t_lvis.py"

model = dict(
    detector=dict(prompt=None, names=_base_.ann_file),
    recognizer=dict(detector_fusion=dict(type="LogPool", weight=0.3, unknown=0.1)),
)
