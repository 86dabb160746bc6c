# The same boxes with meaningless names (a random projection of the pixels): what the boxes alone are worth.
_base_ = "clip_rtdetr_demo.py"

model = dict(recognizer=dict(encoder=dict(_delete_=True, type="rar_mmdet.testing.FakeEncoder", image_size=64)))
