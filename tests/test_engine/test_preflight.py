from pathlib import Path

import pytest
from mmengine.config import Config

from rar_mmdet.engine import missing_assets
from rar_mmdet.engine.preflight import box_source
from rar_mmdet.models.testing import fake_recognizer, write_lvis_world


def config(root, **changes):
    ann_file = str(root / "annotations" / "lvis_demo_test.json")
    content = {
        "test_dataloader": {
            "dataset": {
                "data_root": str(root),
                "ann_file": "annotations/lvis_demo_test.json",
                "data_prefix": {"img": "val2017"},
            }
        },
        "model": {"roi_head": {"recognizer": fake_recognizer(ann_file)}},
        "load_from": None,
        "how_to_get": ["the world: make it"],
    }
    return Config(content | changes)


def test_nothing_is_missing(tmp_path):
    write_lvis_world(tmp_path, num_images=1)
    assert missing_assets(config(tmp_path)) == []


def test_each_missing_thing_has_a_line(tmp_path):
    lines = missing_assets(config(tmp_path / "nowhere", load_from="absent.pth"))
    assert [line.split(":")[0] for line in lines] == [
        "ann_file",
        "images (img)",
        "checkpoint",
        "model.roi_head.recognizer.vocabulary",
        "how to get it",
    ]
    assert "nowhere/annotations/lvis_demo_test.json (looked for in " in lines[0]


def test_a_remote_checkpoint_or_backend_is_not_looked_for(tmp_path):
    remote = config(tmp_path, load_from="https://somewhere.org/x.pth")
    remote.model.roi_head.recognizer.vocabulary = ["a"]
    remote.test_dataloader.dataset.backend_args = {"backend": "petrel"}
    assert missing_assets(remote) == []


def test_missing_weights_come_from_the_parts_themselves(tmp_path):
    write_lvis_world(tmp_path, num_images=1)
    missing = config(tmp_path)
    recognizer = missing.model.roi_head.recognizer
    recognizer.encoder = {"type": "OpenClipEncoder", "model": f"local-dir:{tmp_path}/clip"}
    recognizer.ranker = {"type": "TransformersRanker", "model": f"{tmp_path}/ranker"}
    lines = missing_assets(missing)
    assert any(line.startswith("model.roi_head.recognizer.encoder: ") and f"{tmp_path}/clip" in line for line in lines)
    assert any(line.startswith("model.roi_head.recognizer.ranker: ") and f"{tmp_path}/ranker" in line for line in lines)


def test_a_detector_by_hub_id_needs_no_checkpoint(tmp_path):
    write_lvis_world(tmp_path, num_images=1)
    model = {"detector": {"type": "rar_mmdet.TransformersDetector", "model": "nobody/nothing"}}
    lines = missing_assets(config(tmp_path, model=model, load_from="nobody/nothing"))
    assert lines[0].startswith("checkpoint: nobody/nothing (looked for in ")
    assert lines[0].endswith("this detector has its weights by model.detector.model, a hub id or a folder")
    assert "run `hf download nobody/nothing`" in lines[-1]
    augmented = config(tmp_path, model={"type": "rar_mmdet.RecognitionTTAModel", "module": model})
    assert missing_assets(augmented) == lines[-1:]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        pytest.param("clip_lvis.py", "annotated", id="annotations"),
        pytest.param(
            "detectors/rar_dfine_coco.py",
            {"type": "rar_mmdet.TransformersDetector", "model": "ustc-community/dfine-large-coco"},
            id="a detector beside",
        ),
        pytest.param("detectors/rar_faster-rcnn_demo.py", {"type": "FasterRCNN"}, id="the model itself"),
    ],
)
def test_a_summary_says_where_boxes_come_from(file, source):
    assert box_source(Config.fromfile(Path(__file__).parents[2] / "configs" / file)) == source


def test_a_file_of_proposals_is_named(tmp_path):
    given = config(tmp_path)
    given.test_dataloader.dataset |= {"proposal_file": "found.pkl", "pipeline": [{"type": "mmdet.LoadProposals"}]}
    assert box_source(given) == "proposals of found.pkl"
