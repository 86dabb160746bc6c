# FG-CLIP 2 base (docs/encoders.md; `hf download qihoo360/fg-clip2-base`): boxes are read from one forward pass per
# photo; the cropper serves a ranker.
cropper = dict(type="RegionCropper", scale=dict(type="AreaScale"), background=dict(type="BlurBackground"))
encoder = dict(type="FGCLIP2RegionEncoder", model="qihoo360/fg-clip2-base")
memory = dict(type="TextMemory", templates="single")
retriever = dict(cropper=cropper, encoder=encoder, memory=memory)
