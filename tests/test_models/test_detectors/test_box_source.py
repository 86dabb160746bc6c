"""Detectors of `rar_mmdet.detectors` in MMDetection: the same boxes and the same names as in plain Python."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from rar_mmdet.detectors import AnnotationDetector, TransformersDetector, class_scores
from rar_mmdet.detectors.selection import RegionSelection
from rar_mmdet.errors import ConfigError, InferenceOnlyError
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.testing import fake_recognizer, make_batch, stock_model
from rar_mmdet.structures import ImageRegions

NAMES = [f"thing {i}" for i in range(15)]
IMAGE_HWS = [(60, 80), (90, 70)]
INPUT_HWS = [(96, 128), (128, 96)]


def write(kind, folder):
    """A tiny random detector of that kind."""
    path = Path(__file__).parents[2] / "detectors" / "tiny_detectors.py"
    spec = importlib.util.spec_from_file_location("tiny_detectors", path)
    module = sys.modules["tiny_detectors"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.write_detector(folder, kind))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("rt_detr", tmp_path_factory.mktemp("rt_detr"))


def source(folder, **changes):
    return {"type": "rar_mmdet.TransformersDetector", "model": folder, "score_threshold": 0.0, **changes}


def model_of(detector, **changes):
    return MODELS.build(
        {"type": "rar_mmdet.RARDetector", "detector": detector, "recognizer": fake_recognizer(NAMES)} | changes
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
        boxes, rows = select(one.boxes_xyxy, one.scores, photo.shape[:2])
        assert torch.equal(boxes, one.boxes_xyxy)  # merged already: the same settings choose the same boxes
        expected = model.branch.recognizer.recognize([ImageRegions(photo, boxes, one.scores[rows])])[0]
        assert torch.equal(sample.pred_instances.scores, expected.scores)
        assert torch.equal(sample.pred_instances.labels, expected.category_ids)
        assert torch.equal(sample.pred_instances.bboxes, expected.boxes_xyxy[expected.region_ids])
        assert torch.equal(sample.recognition.box_scores, one.scores)


def test_masks_of_sam_3_follow_their_boxes(tmp_path):
    """Concepts in, boxes with masks out, named by the recogniser: the mask of each is that of its region."""
    settings = source(write("sam3", tmp_path), names=["cat", "dog"])
    batch = make_batch(IMAGE_HWS, INPUT_HWS)
    photos = [sample.ori_img.numpy().copy() for sample in batch["data_samples"]]
    with torch.no_grad():
        samples = model_of(settings, selection={"max_regions": 5, "nms_iou": 0.5}).test_step(batch)
    found = TransformersDetector(**{key: value for key, value in settings.items() if key != "type"}).detect(photos)
    for photo, one, sample in zip(photos, found, samples, strict=True):
        rows = RegionSelection(max_regions=5, nms_iou=0.5)(one.boxes_xyxy, one.scores, photo.shape[:2])[1]
        given = sample.pred_instances
        assert len(given) > len(rows) > 0  # several names a box
        assert given.masks.shape == (len(given), *photo.shape[:2])
        assert torch.equal(given.masks, one.masks[rows][given.region_ids])


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


VOCABULARY = ["Dog", "zebra", "cat_(animal)", "bow", "cup"]  # the detector's: cat, dog, red star


def test_both_faces_join_the_detectors_own_scores(folder):
    pool = {"type": "LogPool", "weight": 0.7, "unknown": 0.05}
    recognizer = fake_recognizer(VOCABULARY, detector_fusion=pool)
    model = model_of(source(folder), recognizer=recognizer, selection={"max_regions": 6, "nms_iou": 0.3})
    batch = make_batch(IMAGE_HWS, INPUT_HWS)
    photos = [sample.ori_img.numpy().copy() for sample in batch["data_samples"]]
    with torch.no_grad():
        samples = model.test_step(batch)
    plain = model_of(source(folder), recognizer=fake_recognizer(VOCABULARY)).branch.recognizer
    everything = TransformersDetector(model=folder, score_threshold=0.0).detect(photos)
    for photo, one, sample in zip(photos, everything, samples, strict=True):
        found = RegionSelection(max_regions=6, nms_iou=0.3).merge(one, photo.shape[:2])
        own = class_scores(found, VOCABULARY)
        assert own.isnan().all(dim=0).tolist() == [False, True, False, True, True]
        expected = model.branch.recognizer.recognize(
            [ImageRegions(photo, found.boxes_xyxy, found.scores, class_scores=own)]
        )[0]
        assert torch.equal(sample.pred_instances.scores, expected.scores)
        assert torch.equal(sample.pred_instances.labels, expected.category_ids)
        without = plain.recognize([ImageRegions(photo, found.boxes_xyxy, found.scores)])[0]
        assert not torch.equal(expected.shortlist.probs, without.shortlist.probs)
        assert "class_scores" not in sample.pred_instances


def test_labels_of_mmdetections_detectors_join_by_their_names():
    recognizer = fake_recognizer(VOCABULARY, detector_fusion={"type": "LogPool", "weight": 0.5})
    retinanet = stock_model("retinanet/retinanet_r50_fpn_1x_coco.py")
    model = model_of(retinanet, recognizer=recognizer, detector_names=["cat", "sky", "dog"])
    found = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [30, 30, 50, 50]]),
        scores=torch.tensor([0.9, 0.6, 0.5]),
        labels=torch.tensor([0, 2, 1]),
    )
    frame = ImageFrame.from_metainfo({"ori_shape": (60, 80)})
    own = model._class_scores(found, found.bboxes, frame)
    expected = torch.tensor([[0.6, torch.nan, 0.9, torch.nan, torch.nan], [0, torch.nan, 0, torch.nan, torch.nan]])
    torch.testing.assert_close(own, expected, equal_nan=True)
    found.labels[0] = 7
    with pytest.raises(ConfigError, match="detector_names has 3 names, and the detector found label 7"):
        model._class_scores(found, found.bboxes, frame)


def test_scores_that_cannot_join_are_refused(folder):
    recognizer = fake_recognizer(["sky", "sea"], detector_fusion={"type": "LogPool"})
    with pytest.raises(ConfigError, match=r"none of the detector's 3 names \(cat, dog, red star\)"):
        model_of(source(folder), recognizer=recognizer).test_step(make_batch(IMAGE_HWS, INPUT_HWS))
    with pytest.raises(ConfigError, match=r"needs the names of the detector's labels: give model.detector_names"):
        model_of(stock_model("retinanet/retinanet_r50_fpn_1x_coco.py"), recognizer=recognizer)
