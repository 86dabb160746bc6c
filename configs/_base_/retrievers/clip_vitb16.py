# The paper's retriever, CLIP ViT-B/16: adaptive scale and blur, one template, exact search.
cropper = dict(type="RegionCropper", scale=dict(type="AreaScale"), background=dict(type="BlurBackground"))
encoder = dict(type="OpenClipEncoder", model="ViT-B-16", pretrained="openai")
memory = dict(type="TextMemory", templates="single")
retriever = dict(cropper=cropper, encoder=encoder, memory=memory)
