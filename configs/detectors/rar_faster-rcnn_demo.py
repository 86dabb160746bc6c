# RAR behind the tiny Faster R-CNN of the demo world.
_base_ = "clip_faster-rcnn_demo.py"

model = dict(
    roi_head=dict(
        recognizer=dict(
            ranker=dict(
                type="TransformersRanker",
                model="{{fileDirname}}/../../demo/weights/ranker",
                loading=dict(modules=["{{fileDirname}}/../../demo/tiny_vision.py"]),
            ),
        ),
    ),
)
