"""The demo's own detector and CLIP, nothing replaced: tools/test.py, two processes, DetInferencer and plain Python."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from ports import free_port

from rar_mmdet.detectors import TransformersDetector
from rar_mmdet.detectors.selection import RegionSelection
from rar_mmdet.engine.command import main
from rar_mmdet.files import readable_photos
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.records import read_records
from rar_mmdet.structures import ImageRegions

ROOT = Path(__file__).parents[2]
SETTINGS = {"max_regions": 30, "nms_iou": 0.7}  # of the config


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path_factory.getbasetemp() / "rar_cache"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(tmp_path):
    """`clip_rtdetr_demo.py` on the four photos that ship with the project."""
    photos = tmp_path / "photos"
    shutil.copytree(ROOT / "demo" / "photos", photos)
    made = Config.fromfile(ROOT / "configs" / "detectors" / "clip_rtdetr_demo.py")
    dataset = {"type": "rar_mmdet.CocoVocabularyDataset", "data_root": str(photos), "ann_file": "boxes.json"}
    made.merge_from_dict({"test_dataloader.dataset": dataset, "test_dataloader.num_workers": 0})
    made.test_evaluator = [
        {"type": "rar_mmdet.SparseCocoMetric", "ann_file": str(photos / "boxes.json"), "metric": "bbox"},
        {"type": "rar_mmdet.RecognitionMetric", "ann_file": str(photos / "boxes.json")},
    ]
    made.model.recognizer.vocabulary = str(photos / "boxes.json")
    # In plain Python a recogniser gives one name for each box unless it is told otherwise.
    made.model.recognizer.emission = {"max_per_image": 300, "box_score_weight": 0.5, "nms_iou": 0.5}
    made.dump(str(tmp_path / "config.py"))
    return tmp_path / "config.py"


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


def found_in(config, paths):
    """The recognitions of the photos in plain Python."""
    settings = Config.fromfile(config).model
    detector = TransformersDetector(model=settings.detector.model)
    recognizer = RegionRecognizer.from_config(config)
    select = RegionSelection(**SETTINGS)
    found = [select.merge(one, (360, 480)) for one in detector.detect(paths)]
    photos = [cv2.imread(str(path))[..., ::-1].copy() for path in paths]
    return recognizer.recognize(
        [ImageRegions(photo, one.boxes_xyxy, one.scores) for photo, one in zip(photos, found, strict=True)]
    )


def test_the_test_tool_finds_names_and_draws_what_plain_python_does(config):
    assert main([str(config), "--work-dir", "out", "--show-dir", "drawn", "--results", "r.bbox.json"]) == 0
    numbers = summary("out")["metrics"]
    assert numbers["coco/bbox_mAP_50"] > 0.6
    assert numbers["recognition/matched"] >= 0.9
    assert summary("out")["report"]["images"] == 4
    assert len(list(Path("out").rglob("drawn/*.jpg"))) == 4
    expected = found_in(config, [config.parent / "photos" / f"photo{i}.jpg" for i in (1, 2, 3, 4)])
    records = list(read_records("out/regions.jsonl"))
    assert len(records) == sum(map(len, expected))
    for image, own in zip((1, 2, 3, 4), expected, strict=True):
        boxes = torch.tensor([record.box_xyxy for record in records if record.image == image])
        torch.testing.assert_close(boxes, own.boxes_xyxy, atol=1e-2, rtol=0)


def test_a_flip_and_meaningless_names(config):
    assert main([str(config), "--work-dir", "tta", "--tta"]) == 0
    assert summary("tta")["metrics"]["coco/bbox_mAP_50"] > 0.6
    options = ["model.recognizer.encoder._delete_=True", "model.recognizer.encoder.image_size=64"]
    options.append("model.recognizer.encoder.type=rar_mmdet.testing.FakeEncoder")
    assert main([str(config), "--work-dir", "random", "--cfg-options", *options]) == 0
    random = summary("random")["metrics"]
    assert random["coco/bbox_mAP_50"] < 0.2


def test_two_processes_give_what_one_gives(config):
    assert main([str(config), "--work-dir", "one"]) == 0
    environment = os.environ | {"PYTHON": sys.executable, "PORT": free_port(), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    command = ["bash", str(ROOT / "tools" / "dist_test.sh"), str(config), "none", "2", "--work-dir", "two"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert summary("two")["num_processes"] == 2
    assert summary("two")["metrics"] == pytest.approx(summary("one")["metrics"], abs=1e-6)
    assert summary("two")["report"] == summary("one")["report"]


def test_det_inferencer_needs_no_checkpoint_and_passes_over_a_damaged_photo(config, caplog):
    inferencer = DetInferencer(str(config), device="cpu", show_progress=False)
    photos = [config.parent / "photos" / f"photo{i}.jpg" for i in (1, 2, 3)]
    paths = [str(photos[0]), str(photos[2])]
    photos[1].write_bytes(photos[1].read_bytes()[:9000])
    with pytest.raises(Exception, match="photo2"):  # OpenCV's or ours, by its version
        inferencer([str(photo) for photo in photos], no_save_vis=True)
    readable, left_out = readable_photos(photos)
    assert readable == paths
    assert list(left_out) == [str(photos[1])]
    assert "1 photo cannot be read and left out: image " in caplog.text
    out = inferencer(paths, batch_size=2, out_dir="out", no_save_pred=False)
    for path, prediction, own in zip(paths, out["predictions"], found_in(config, paths), strict=True):
        np.testing.assert_allclose(prediction["scores"], own.scores, atol=1e-3)
        assert Path("out", "vis", Path(path).name).is_file()
