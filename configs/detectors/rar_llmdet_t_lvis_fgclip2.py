# LLMDet Swin-T asked for the 1,203 names, its scores joined with those of FG-CLIP 2 base: the chain without training
# for which the authors of FG-CLIP 2 report 51.6 fixed AP on LVIS minival, joined in their own way. Not measured here;
# the weights are defaults, see rar_llmdet_t_lvis_joined.py.
_base_ = "rar_llmdet_t_lvis_joined.py"

how_to_get = [*_base_.how_to_get, "encoder: hf download qihoo360/fg-clip2-base"]

model = dict(
    recognizer=dict(
        encoder=dict(_delete_=True, type="FGCLIP2RegionEncoder", model="qihoo360/fg-clip2-base"),
    ),
)
