"""Configs written for a user's own data run as they are written."""

import json
from pathlib import Path

import pytest

from rar_mmdet.cli import main as cli
from rar_mmdet.errors import AnnotationFileError, ConfigError
from rar_mmdet.new_config import main

PHOTOS = Path(__file__).parents[1] / "demo" / "photos"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("style", ["coco", "lvis", "yolo"])
def test_written_configs_run(style, tmp_path, capsys):
    pytest.importorskip("mmdet")
    from rar_mmdet.engine.command import main as test

    data = [str(PHOTOS / "boxes.json"), "--images", str(PHOTOS)]
    if style == "lvis":
        data = [str(as_lvis(tmp_path)), "--images", str(PHOTOS.parent)]
    if style == "yolo":
        data = [str(as_yolo(tmp_path))]
    assert main([*data, "--out", str(tmp_path / "mine"), "--encoder", "demo", "--ranker", "demo"]) == 0
    assert "next:" in capsys.readouterr().out
    name = "rar.py" if style == "coco" else "retrieval.py"
    assert test([str(tmp_path / "mine" / name), "--work-dir", str(tmp_path / "work")]) == 0
    metrics = json.loads((tmp_path / "work" / "summary.json").read_text())["metrics"]
    assert metrics["recognition/objects"] == 30
    assert metrics["recognition/matched"] == 1.0
    assert metrics["recognition/top1"] > 0.8
    assert ("lvis/bbox_AP" in metrics) == (style == "lvis")


def as_lvis(folder):
    content = json.loads((PHOTOS / "boxes.json").read_text())
    for image in content["images"]:
        # LVIS finds photos by the end of coco_url.
        url = f"http://images.cocodataset.org/photos/{image.pop('file_name')}"
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[], coco_url=url)
    for category in content["categories"]:
        category.update(frequency="f", synset=category["name"], synonyms=[category["name"]])
        category.update(image_count=1, instance_count=1)
    file = folder / "lvis.json"
    file.write_text(json.dumps(content))
    return file


def as_yolo(folder):
    content = json.loads((PHOTOS / "boxes.json").read_text())
    (folder / "yolo" / "images").mkdir(parents=True)
    (folder / "yolo" / "labels").mkdir()
    for image in content["images"]:
        (folder / "yolo" / "images" / image["file_name"]).symlink_to(PHOTOS / image["file_name"])
        lines = []
        for a in content["annotations"]:
            if a["image_id"] == image["id"]:
                x, y, w, h = a["bbox"]
                shares = ((x + w / 2) / image["width"], (y + h / 2) / image["height"])
                shares += (w / image["width"], h / image["height"])
                lines.append(f"{a['category_id'] - 1} " + " ".join(f"{value:.9f}" for value in shares))
        label = folder / "yolo" / "labels" / f"{Path(image['file_name']).stem}.txt"
        label.write_text("\n".join(lines))
    names = [c["name"] for c in content["categories"]]
    (folder / "yolo" / "classes.txt").write_text("\n".join(names))
    return folder / "yolo"


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        pytest.param(["nowhere.json"], ConfigError, "nowhere.json does not exist", id="data"),
        pytest.param([str(PHOTOS / "boxes.json")], ConfigError, "give the folder .* --images FOLDER", id="no-images"),
        pytest.param(
            [str(PHOTOS / "boxes.json"), "--images", str(PHOTOS.parent)],
            AnnotationFileError,
            "photo1.jpg does not exist, but boxes.json names it",
            id="wrong-images",
        ),
        pytest.param(
            [str(PHOTOS / "boxes.json"), "--images", str(PHOTOS), "--ranker", "gpt"],
            ConfigError,
            "--ranker 'gpt' is not known; known are qwen",
            id="ranker",
        ),
    ],
)
def test_what_does_not_fit_is_named(argv, error, message, tmp_path):
    with pytest.raises(error, match=message):
        main([*argv, "--out", str(tmp_path / "mine")])


def test_nothing_is_overwritten(tmp_path, capsys):
    argv = ["new-config", str(PHOTOS / "boxes.json"), "--images", str(PHOTOS), "--out", str(tmp_path)]
    assert cli(argv) == 0
    assert cli(argv) == 2
    assert "retrieval.py is there already; give another --out" in capsys.readouterr().err


def test_a_file_without_categories(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}')
    with pytest.raises(AnnotationFileError, match="has no categories"):
        main([str(file), "--images", str(tmp_path), "--out", str(tmp_path / "mine")])
