"""Test-time augmentation by MMDetection's `TestTimeAug` and flips, merged by ours and by MMDetection's own model."""

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from rar_mmdet.models.testing import fake_recognizer, stock_model
from rar_mmdet.testing import make_boxes, make_image

NAMES = [f"thing {i}" for i in range(9)]
TTA_CFG = ConfigDict(nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=300)
# Two annotated boxes of one place: an NMS would drop one of them.
BOXES = torch.cat([make_boxes(4), make_boxes(4)[:1] + 0.5])
KEEP, GIVE, PACK = (
    {"type": f"rar_mmdet.{name}"} for name in ("KeepOriginalImage", "ProposalsFromAnnotations", "PackRecognitionInputs")
)
RESIZE = {"type": "Resize", "scale": (120, 96), "keep_ratio": False}  # MMDetection's heads want a scale_factor
VIEWS = {
    "horizontal": [[{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]],
    "every-direction-and-padding": [
        [{"type": "Pad", "size": (96, 128)}, {"type": "Pad", "size": (96, 120)}],
        [{"type": "RandomFlip", "prob": 1.0, "direction": d} for d in ("horizontal", "vertical", "diagonal")],
    ],
}
views = pytest.mark.parametrize("steps", VIEWS.values(), ids=VIEWS.keys())


def results():
    return {
        "img": make_image(60, 80)[..., ::-1].copy(),
        "img_id": 3,
        "img_path": None,
        "img_shape": (60, 80),
        "ori_shape": (60, 80),
        "instances": [{"bbox": box, "bbox_label": 0, "ignore_flag": 0} for box in BOXES.tolist()],
        "gt_bboxes": HorizontalBoxes(BOXES.clone()),
        "gt_bboxes_labels": np.zeros(len(BOXES), dtype=np.int64),
        "gt_ignore_flags": np.zeros(len(BOXES), dtype=bool),
    }


def predict(model, *pipeline):
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([Compose(list(pipeline))(results())]))
    return sample


def augmented(module, steps, model_type="rar_mmdet.RecognitionTTAModel", given=True):
    model = MODELS.build({"type": model_type, "module": module, "tta_cfg": TTA_CFG}).eval()
    tta = {"type": "TestTimeAug", "transforms": [*steps, [PACK]]}
    return predict(model, KEEP, *([GIVE] if given else [RESIZE]), tta)


def recogniser():
    return MODELS.build({"type": "rar_mmdet.ProposalRecognizer", "recognizer": fake_recognizer(NAMES)}).eval()


@views
def test_given_boxes_come_out_as_without(steps):
    plain, found = predict(recogniser(), KEEP, GIVE, PACK), augmented(recogniser(), steps)
    for field in ("bboxes", "scores", "labels", "region_ids"):
        assert torch.equal(found.pred_instances[field], plain.pred_instances[field]), field
    assert found.pred_instances.label_names == plain.pred_instances.label_names
    assert torch.equal(found.recognition.bboxes, BOXES)
    assert torch.equal(found.recognition.ranked_ids, plain.recognition.ranked_ids)
    assert torch.equal(found.gt_instances.bboxes, BOXES)  # what is drawn


@views
def test_mmdetections_own_model_gets_the_photos_frame_too(steps):
    found = augmented(recogniser(), steps, "DetTTAModel")
    assert torch.equal(found.recognition.bboxes, BOXES)
    plain = predict(recogniser(), KEEP, GIVE, PACK).pred_instances
    places = {tuple(box) for box in plain.bboxes.tolist()}
    assert {tuple(box) for box in found.pred_instances.bboxes.tolist()} <= places


def retinanet():
    torch.manual_seed(0)
    detector = stock_model("retinanet/retinanet_r50_fpn_1x_coco.py")
    detector.test_cfg.score_thr = 0.001
    config = {"type": "rar_mmdet.RARDetector", "detector": detector, "recognizer": fake_recognizer(NAMES)}
    return MODELS.build(config | {"selection": {"max_regions": 6}}).eval()


@views
def test_what_a_detector_finds_in_each_view_stays_with_its_recognition(steps):
    found = augmented(retinanet(), steps, given=False)
    detections, regions = found.pred_instances, found.recognition
    num_views = int(np.prod([len(step) for step in steps]))
    assert len(regions) == 6 * num_views
    assert 0 < len(detections) <= 300
    assert torch.equal(detections.bboxes, regions.bboxes[detections.region_ids])
    assert (detections.scores.diff() <= 0).all()
    assert len(detections.label_names) == len(detections)
    stock = augmented(retinanet(), steps, "DetTTAModel", given=False).pred_instances
    assert torch.allclose(detections.bboxes, stock.bboxes)
    assert torch.allclose(detections.scores, stock.scores)
    assert torch.equal(detections.labels, stock.labels)


def test_samples_of_other_models_are_merged_as_mmdetection_does():
    class Stock(torch.nn.Module):
        def test_step(self, data):
            for sample in data["data_samples"]:
                boxes = torch.tensor([[70.0, 0, 80, 5]] if sample.flip else [[0.0, 0, 10, 5]])
                fields = {"bboxes": boxes, "scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.int64)}
                sample.pred_instances = InstanceData(**fields)
            return data["data_samples"]

    found = augmented(Stock(), VIEWS["horizontal"], given=False)
    assert found.pred_instances.bboxes.tolist() == [[0.0, 0.0, 10.0, 5.0]]


def test_no_boxes_in_any_view():
    config = {"type": "rar_mmdet.RecognitionTTAModel", "module": retinanet(), "tta_cfg": TTA_CFG}
    model = MODELS.build(config).eval()
    model.module.detector.bbox_head.test_cfg["score_thr"] = 1.1
    tta = {"type": "TestTimeAug", "transforms": [*VIEWS["horizontal"], [PACK]]}
    found = predict(model, KEEP, RESIZE, tta)
    assert len(found.pred_instances) == len(found.recognition) == 0
