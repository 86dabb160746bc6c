# RAR behind DINO: boxes from COCO, names from LVIS.
_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/lvis_v1_detection.py",
    "../_base_/retrievers/clip_vitb16.py",
]

how_to_get = [*_base_.how_to_get, "checkpoint: dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth" + _base_.zoo]

model = dict(
    type="rar_mmdet.RARDetector",
    detector="mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
    recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
)
