# The paper's retriever, CLIP ViT-B/16, on given boxes: adaptive scale and blur, one template, exact search.
model = dict(
    type="rar_mmdet.ProposalRecognizer",
    recognizer=dict(
        cropper=dict(
            type="RegionCropper", size=224, scale=dict(type="AreaScale"), background=dict(type="BlurBackground")
        ),
        encoder=dict(type="OpenClipEncoder", model="ViT-B-16", pretrained="openai"),
        memory=dict(type="TextMemory", templates="single"),
        shortlist_depth=300,
        num_candidates=5,
    ),
)
