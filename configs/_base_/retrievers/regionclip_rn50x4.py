# RegionCLIP RN50x4 (docs/encoders.md): boxes are read from one forward pass per photo; the cropper serves a ranker.
# Its 81 templates, its temperature. A box's softmax has no background column here: where the best cosine is above 0.14,
# that column takes less than one part in a million.
cropper = dict(type="RegionCropper")
encoder = dict(type="RegionClipEncoder", checkpoint="data/regionclip/regionclip_pretrained-cc_rn50x4.pth")
memory = dict(type="TextMemory", templates="vild81", temperature=0.01)
retriever = dict(cropper=cropper, encoder=encoder, memory=memory)
