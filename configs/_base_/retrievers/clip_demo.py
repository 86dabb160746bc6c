# The demo world's retriever: a tiny CLIP trained for it (demo/README.md).
cropper = dict(type="RegionCropper", scale=dict(type="AreaScale"), background=dict(type="BlurBackground"))
encoder = dict(type="OpenClipEncoder", model="local-dir:{{fileDirname}}/../../../demo/weights/clip")
memory = dict(type="TextMemory", templates="single")
retriever = dict(cropper=cropper, encoder=encoder, memory=memory)
