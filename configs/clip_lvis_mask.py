# "CLIP w/ mask" (the paper's Table 3): clip_lvis.py with the annotated masks kept sharp rather than their boxes.
# The crops are cut in the data-loader workers, which have the masks.
_base_ = "clip_lvis.py"

cropper = dict(type="RegionCropper", size=224, scale=dict(type="AreaScale"), background=dict(type="BlurOutsideMask"))
model = dict(recognizer=dict(cropper=cropper))
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="rar_mmdet.ProposalsFromAnnotations", with_masks=True),
    dict(type="rar_mmdet.CropRegions", cropper=cropper),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
