"""Calibration of a ranker: an oracle gets all the weight, odd annotations change no number, crops are not kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from rar_mmdet.calibration.annotated import find_regions
from rar_mmdet.calibration.crops import Scorer
from rar_mmdet.calibration.ranker import Opinions, collect, fit, main, plot
from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import RarError
from rar_mmdet.files.vocabulary import label_order
from rar_mmdet.memory import TextMemory
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.regions import RegionCropper
from rar_mmdet.structures import Ranking, Shortlist
from rar_mmdet.testing import FakeEncoder, FakeRanker

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "demo" / "photos"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def annotations():
    return json.loads((PHOTOS / "boxes.json").read_text())


def opinions_of(truth, k):
    """Four regions over five categories; retrieval is right in the first, listed in the first three."""
    ids = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [2, 3, 0, 1, 4], [3, 4, 0, 1, 2]])
    shortlist = Shortlist(ids, torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]]).repeat(4, 1))
    nobody = Opinions(torch.tensor(truth), shortlist, Ranking.identity(4, k))
    target = nobody.target(k)
    log_probs = torch.full((4, k), -8.0)
    log_probs[target >= 0, target[target >= 0]] = 0.0
    log_probs = log_probs.log_softmax(1)
    order = log_probs.argsort(dim=1, descending=True, stable=True)
    return Opinions(nobody.truth, shortlist, Ranking(order, log_probs, torch.zeros(4, dtype=torch.int64)))


def make_recognizer(names):
    return RegionRecognizer(
        cropper=RegionCropper(size=32),
        encoder=FakeEncoder(),
        memory=TextMemory(),
        category_names=names,
        ranker=FakeRanker(),
        emission=TopPairs(),
    )


def test_target_is_the_column_of_the_truth():
    assert opinions_of([0, 0, 3, 2], 3).target(3).tolist() == [0, 1, 1, -1]
    assert opinions_of([0, 0, 3, 2], 5).target(5).tolist() == [0, 1, 1, 4]


def test_an_oracle_gets_all_the_weight_and_full_top1():
    result = fit(opinions_of([0, 0, 3, 2], 3), 3)
    assert result["used"] == 3
    assert result["alpha"] == pytest.approx(1.0, abs=1e-5)
    assert result["top1_retrieval"] == 0.25
    assert result["top1_fused"] == result["recall_at_k"] == 0.75
    assert result["nll_fused"] <= min(result["nll_retrieval"], result["nll_ranker_tempered"]) + 1e-9


def test_what_cannot_be_fitted_is_said():
    with pytest.raises(RarError, match=r"among the K=1 candidates .* K >= 2"):
        fit(opinions_of([0, 0, 3, 2], 1), 1)
    with pytest.raises(RarError, match="0 of 4 regions have their truth"):
        fit(opinions_of([99, 99, 99, 99], 3), 3)


def test_what_is_collected_is_what_the_recogniser_says(annotations):
    regions = find_regions(annotations, PHOTOS)
    recognizer = make_recognizer([c["name"] for c in annotations["categories"]])
    found = collect(recognizer, regions, label_order(annotations["categories"]))
    first = recognizer(PHOTOS / "photo1.jpg", regions.boxes_xyxy[regions.rows(0)])
    assert torch.equal(found.shortlist.category_ids[:9], first.shortlist.category_ids)
    torch.testing.assert_close(found.ranking.log_probs[:9], first.ranking.log_probs)
    names = [annotations["categories"][label]["id"] for label in found.truth.tolist()]
    assert names == [a["category_id"] for a in annotations["annotations"]]


def test_ap_of_the_truth_is_one(annotations):
    regions = find_regions(annotations, PHOTOS)
    recognizer = make_recognizer([c["name"] for c in annotations["categories"]])
    found = collect(recognizer, regions, label_order(annotations["categories"]))
    score = Scorer(recognizer.memory, recognizer.emission, regions, annotations)
    certain = (found.shortlist.category_ids == found.truth[:, None]).float()
    assert score.of(certain, found.shortlist.category_ids)["AP"] == pytest.approx(100.0)
    assert score.of(found.shortlist.probs, found.shortlist.category_ids)["AP"] < 100


def test_crops_of_a_few_photos_are_held_at_a_time(annotations, monkeypatch):
    monkeypatch.setattr("rar_mmdet.calibration.ranker.REGIONS_AT_A_TIME", 10)
    recognizer = make_recognizer([c["name"] for c in annotations["categories"]])
    shown, rank = [], recognizer.ranker.rank
    recognizer.ranker.rank = lambda crops, *rest: (shown.append(len(crops)), rank(crops, *rest))[1]
    collect(recognizer, find_regions(annotations, PHOTOS), label_order(annotations["categories"]))
    assert shown == [9, 7, 8, 6]


def test_the_command_on_a_turned_photo_odd_annotations_and_unsorted_categories(tmp_path, annotations, capsys):
    """Zero-width boxes, crowds and nulls are left out; ids that are not sorted keep their labels."""
    root = tmp_path / "photos"
    shutil.copytree(PHOTOS, root)
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.open(root / "photo1.jpg").save(root / "photo1.jpg", quality=95, exif=exif)
    for category in annotations["categories"]:
        category["id"] = 1000 - category["id"]
    for annotation in annotations["annotations"]:
        annotation["category_id"] = 1000 - annotation["category_id"]
    odd = dict(annotations["annotations"][0])
    annotations["annotations"] += [
        {**odd, "id": 901, "bbox": [5.0, 5.0, 0.0, 9.0]},
        {**odd, "id": 902, "iscrowd": 1},
        {**odd, "id": 903, "bbox": None},
    ]
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    config = str(ROOT / "configs" / "demo" / "rar_demo.py")
    argv = [config, "--annotations", str(tmp_path / "a.json"), "--images", str(root), "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    assert "30 regions have their truth" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert result["regions"] == 30
    assert result["top1_fused"] > 0.85
    from mmengine.config import Config

    best = Config.fromfile(tmp_path / "out" / "best_fusion.py")
    assert best.model.recognizer.fusion.alpha == pytest.approx(result["alpha"], abs=1e-3)
    assert best.model.recognizer.ranker.type == "TransformersRanker"
    assert main(argv) == 0  # again: every answer is kept
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["ranker"]["asked"] == 0


def test_plot(tmp_path):
    plot({"AP": [0.1 * i / 10 for i in range(11)]}, 0.4, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("config", "images", "message"),
    [
        pytest.param("nowhere.py", PHOTOS, "config nowhere.py does not exist", id="config"),
        pytest.param("clip_demo.py", PHOTOS, "has no ranker that gives log-probabilities", id="no-ranker"),
        pytest.param("rar_demo_generate.py", PHOTOS, "has no ranker that gives log-probabilities", id="text"),
        pytest.param("rar_demo.py", ROOT, "photo1.jpg does not exist; give the folder", id="images"),
    ],
)
def test_errors_say_what_to_give(config, images, message, tmp_path, capsys):
    file = ROOT / "configs" / "demo" / config
    argv = [str(file) if file.exists() else config, "--annotations", str(PHOTOS / "boxes.json")]
    assert main([*argv, "--images", str(images), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
