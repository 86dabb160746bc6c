# The demo world's retriever: a tiny CLIP trained for it (demo/README.md).
cropper = dict(type="RegionCropper", size=64, scale=dict(type="AreaScale"), background=dict(type="BlurBackground"))
encoder = dict(type="OpenClipEncoder", model="local-dir:{{fileDirname}}/../../../demo/weights/clip")
memory = dict(type="TextMemory", templates="single")
