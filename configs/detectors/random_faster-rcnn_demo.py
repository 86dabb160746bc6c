# The same detector with meaningless names (a random projection of the pixels): what the boxes alone are worth.
_base_ = "clip_faster-rcnn_demo.py"

model = dict(
    roi_head=dict(recognizer=dict(encoder=dict(_delete_=True, type="rar_mmdet.testing.FakeEncoder", image_size=64)))
)
