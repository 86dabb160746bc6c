# RAR behind MM-Grounding-DINO Swin-T: boxes from transformers' detector, names from LVIS.
_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/lvis_v1_photos.py",
    "../_base_/retrievers/clip_vitb16.py",
]

how_to_get = [*_base_.how_to_get, "detector: hf download openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit"]

model = dict(
    type="rar_mmdet.RARDetector",
    detector=dict(
        type="rar_mmdet.TransformersDetector",
        model="openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit",
        prompt="object . animal . person . vehicle . food . tool . furniture . clothing . plant",
    ),
    recognizer=dict(
        vocabulary=_base_.ann_file,
        emission=dict(max_per_image=1000, box_score_weight=0.5, nms_iou=0.5),
        **_base_.retriever,
    ),
)
test_evaluator = [
    dict(type="rar_mmdet.SparseLVISMetric", ann_file=_base_.ann_file, metric="bbox", digits=None, fixed_ap=True),
    dict(type="rar_mmdet.RecognitionMetric", ann_file=_base_.ann_file),
]
