# RAR behind LLMDet Swin-T: boxes from transformers' detector, names from V3Det.
_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/v3det_photos.py",
    "../_base_/retrievers/clip_vitb16.py",
]

how_to_get = [*_base_.how_to_get, "detector: hf download iSEE-Laboratory/llmdet_tiny"]

model = dict(
    type="rar_mmdet.RARDetector",
    detector=dict(
        type="rar_mmdet.TransformersDetector",
        model="iSEE-Laboratory/llmdet_tiny",
        prompt="object . animal . person . vehicle . food . tool . furniture . clothing . plant",
    ),
    recognizer=dict(
        vocabulary=_base_.ann_file,
        emission=dict(max_per_image=1000, box_score_weight=0.5, nms_iou=0.5),
        **_base_.retriever,
    ),
)
