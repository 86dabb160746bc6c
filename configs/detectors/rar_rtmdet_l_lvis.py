# RAR behind RTMDet: boxes from COCO, names from LVIS.
_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/lvis_v1_detection.py",
    "../_base_/retrievers/clip_vitb16.py",
]

how_to_get = [*_base_.how_to_get, "checkpoint: rtmdet_l_8xb32-300e_coco_20220719_112030-5a0be7c4.pth" + _base_.zoo]

model = dict(
    type="rar_mmdet.RARDetector",
    detector="mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py",
    recognizer=dict(vocabulary=_base_.ann_file, **_base_.retriever),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="Resize", scale=(640, 640), keep_ratio=True),
    dict(type="Pad", size=(640, 640), pad_val=dict(img=(114, 114, 114))),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
