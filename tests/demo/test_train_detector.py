"""The demo's detector: its training resumes where it was killed; what it wrote, and what ships, finds boxes."""

import json
import sys

import pytest
import torch
import train_detector
from safetensors.torch import load_file
from torchvision.ops import box_iou

from rar_mmdet.detectors import TransformersDetector

LARGEST = 5_000_000  # bytes of weights that ship


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tiny_world, tmp_path, monkeypatch):
    def run(name):
        flags = {
            "data": tiny_world,
            "steps": 2,
            "batch": 2,
            "save-every": 1,
            "out": tmp_path / name,
            "work": tmp_path / f".{name}",
        }
        monkeypatch.setattr(
            sys, "argv", ["x", *(word for key, value in flags.items() for word in (f"--{key}", str(value)))]
        )
        train_detector.main()

    run("unbroken")
    honest, calls = train_detector.as_pixels, []

    def killed_in_second_step(views):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(views)

    monkeypatch.setattr(train_detector, "as_pixels", killed_in_second_step)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    monkeypatch.setattr(train_detector, "as_pixels", honest)
    run("killed")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("unbroken", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    measured = [json.loads((tmp_path / name / "measured.json").read_text()) for name in ("unbroken", "killed")]
    assert measured[0] == measured[1]
    photo, _ = train_detector.read_split(tiny_world, "test", "val2017")
    found = TransformersDetector(model=str(tmp_path / "killed"), score_threshold=0.0, merge_iou=1.0).detect([photo[0]])[
        0
    ]
    assert len(found) == 100


def test_what_ships_is_small_and_finds_the_objects_of_photos_it_has_not_seen(tiny_world, demo_dir):
    """Photos of another seed than that of its training; the recall that its page states is of the whole test split."""
    folder = demo_dir / "weights" / "detector"
    assert (folder / "model.safetensors").stat().st_size <= LARGEST
    photos, boxes = train_detector.read_split(tiny_world, "test", "val2017")
    detector = TransformersDetector(model=str(folder), score_threshold=0.0, merge_iou=1.0, max_boxes=100)
    hit = [
        box_iou(torch.from_numpy(truth), found.boxes_xyxy).amax(dim=1) >= 0.5
        for truth, found in zip(boxes, detector.detect(list(photos)), strict=True)
    ]
    stated = json.loads((folder / "measured.json").read_text())["test photos"]["recall at IoU .5"]
    assert torch.cat(hit).double().mean() == pytest.approx(stated, abs=0.06)
    assert f"| {stated:.3f}".replace("0.", ".") in (folder / "README.md").read_text()
