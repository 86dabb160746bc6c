"""Detectors of `rar_mmdet.detectors` in MMDetection: the same boxes and the same names as in plain Python."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS

from rar_mmdet.detectors import AnnotationDetector, TransformersDetector
from rar_mmdet.errors import ConfigError, InferenceOnlyError
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.region_selection import RegionSelection
from rar_mmdet.models.testing import fake_recognizer, make_batch
from rar_mmdet.structures import ImageRegions

NAMES = [f"thing {i}" for i in range(15)]
IMAGE_HWS = [(60, 80), (90, 70)]
INPUT_HWS = [(96, 128), (128, 96)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = Path(__file__).parents[2] / "detectors" / "tiny_detectors.py"
    spec = importlib.util.spec_from_file_location("tiny_detectors", path)
    module = sys.modules["tiny_detectors"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.write_detector(tmp_path_factory.mktemp("rt_detr"), "rt_detr"))


def source(folder, **changes):
    return {"type": "rar_mmdet.TransformersDetector", "model": folder, "score_threshold": 0.0, **changes}


def model_of(detector, **changes):
    return MODELS.build(
        {"type": "rar_mmdet.RARDetector", "detector": detector, "recognizer": fake_recognizer(NAMES), **changes}
    ).eval()


def test_both_faces_give_identical_recognitions(folder):
    model = model_of(source(folder))
    batch = make_batch(IMAGE_HWS, INPUT_HWS)
    photos = [sample.ori_img.numpy().copy() for sample in batch["data_samples"]]
    with torch.no_grad():
        samples = model.test_step(batch)
    found = TransformersDetector(model=folder, score_threshold=0.0).detect(photos)
    select = RegionSelection(max_regions=300, nms_iou=0.7)
    for photo, one, sample in zip(photos, found, samples, strict=True):
        frame = ImageFrame.from_metainfo({"ori_shape": photo.shape[:2]})
        boxes, rows = select(one.boxes_xyxy, one.scores, frame)
        assert torch.equal(boxes, one.boxes_xyxy)  # merged already: the same settings choose the same boxes
        expected = model.branch.recognizer.recognize([ImageRegions(photo, boxes, one.scores[rows])])[0]
        assert torch.equal(sample.pred_instances.scores, expected.scores)
        assert torch.equal(sample.pred_instances.labels, expected.category_ids)
        assert torch.equal(sample.pred_instances.bboxes, expected.boxes_xyxy[expected.region_ids])
        assert torch.equal(sample.recognition.box_scores, one.scores)


def test_by_itself_it_detects_as_any_detector_of_mmdetection(folder):
    model = MODELS.build(source(folder)).eval()
    batch = make_batch(IMAGE_HWS, INPUT_HWS)
    photos = [sample.ori_img.numpy().copy() for sample in batch["data_samples"]]
    with torch.no_grad():
        samples = model.test_step(batch)
    for sample, one in zip(
        samples, TransformersDetector(model=folder, score_threshold=0.0).detect(photos), strict=True
    ):
        torch.testing.assert_close(sample.pred_instances.bboxes, one.boxes_xyxy)
        assert torch.equal(sample.pred_instances.labels, one.label_ids)
    with pytest.raises(InferenceOnlyError, match="inference only"):
        model.loss(None, [])


@pytest.mark.parametrize("direction", ["horizontal", "vertical", "diagonal"])
def test_boxes_of_a_flipped_view_come_back(direction):
    frame = ImageFrame.from_metainfo(
        {"ori_shape": (60, 80), "img_shape": (120, 160), "scale_factor": (2.0, 2.0)}
        | {"flip": True, "flip_direction": direction}
    )
    boxes = torch.tensor([[1.0, 2, 30, 40], [50, 10, 80, 60]])
    torch.testing.assert_close(frame.from_detector(frame.to_detector(boxes)), boxes)


def test_boxes_of_a_file(tmp_path):
    batch = make_batch(IMAGE_HWS, INPUT_HWS)
    paths = [sample.metainfo["img_path"] for sample in batch["data_samples"]]
    images = [
        {"id": i, "file_name": Path(path or f"photo{i}.jpg").name, "height": hw[0], "width": hw[1]}
        for i, (path, hw) in enumerate(zip(paths, IMAGE_HWS, strict=True))
    ]
    for sample, image in zip(batch["data_samples"], images, strict=True):
        sample.set_metainfo({"img_path": f"anywhere/{image['file_name']}"})
    file = {
        "images": images,
        "annotations": [{"id": 1, "image_id": 0, "category_id": 3, "bbox": [5, 6, 20, 30], "score": 0.5}],
        "categories": [{"id": 3, "name": "dog"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(file))
    with torch.no_grad():
        samples = model_of({"type": "rar_mmdet.AnnotationDetector", "boxes": str(tmp_path / "boxes.json")}).test_step(
            batch
        )
    assert samples[0].recognition.bboxes.tolist() == [[5, 6, 25, 36]]
    assert samples[0].recognition.box_scores.tolist() == [0.5]
    assert len(samples[1].pred_instances) == 0
    assert AnnotationDetector(tmp_path / "boxes.json").names == ("dog",)


def test_a_misspelt_key_is_named(folder):
    with pytest.raises(ConfigError, match="has no key 'promt'; did you mean 'prompt'"):
        model_of(source(folder, promt="object"))


def test_it_says_nothing_of_a_missing_checkpoint(folder, capsys):
    model = model_of(source(folder))
    assert model._weights.loaded
    assert not any(key.startswith("detector.source") for key in model.state_dict())
    assert np.isfinite(len(model.state_dict()))
