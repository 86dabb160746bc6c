"""Calibration of a ranker on a tiny world, with a tiny random CLIP and a tiny random LLaVA: nothing is replaced."""

import importlib.util
import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from skimage import data

from rar_mmdet.calibration import Opinions, Scorer, ask_about, find_regions, fit
from rar_mmdet.calibration.none_of_these import OpenSet, hide_categories
from rar_mmdet.calibration.none_of_these import fit as fit_threshold
from rar_mmdet.calibration.ranker import AskAboutAll, changes_of, labels_of
from rar_mmdet.calibration.ranker_command import WEIGHTS, curves, plot
from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.emission import BestPerRegion, TopPairs
from rar_mmdet.errors import ConfigError, RarError
from rar_mmdet.fusion import LogLikFusion, NoneOfThese
from rar_mmdet.memory import TextMemory
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.regions import RegionCropper
from rar_mmdet.structures import Ranking, RankStatus
from rar_mmdet.testing import FakeEncoder, FakeMemory, FakeRanker


def main(arguments):
    return rar_mmdet(["calibrate", "ranker", *arguments])


ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "demo" / "photos"
BOXES = [[10, 10, 20, 18], [60, 20, 25, 25], [100, 50, 60, 50], [20, 80, 50, 70], [180, 20, 120, 140]]
NAMES = ["red star", "blue cup", "cup_(drink)", "never seen"]


def annotation_file(frequency=True, order=(0, 1, 2, 3)):
    """Two photos of five boxes each; the categories stand in any order in the file, and so do their ids."""
    images = [
        {"id": 7 + i, "file_name": f"{i}.png", "height": 200, "width": 320}
        | {"neg_category_ids": [4], "not_exhaustive_category_ids": []}
        for i in range(2)
    ]
    annotations = [
        {
            "id": 1 + i,
            "image_id": 7 + i % 2,
            "category_id": 11 - i % 3,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for i, box in enumerate(BOXES * 2)
    ]
    categories = [{"id": 11 - i, "name": NAMES[i], **({"frequency": "rcff"[i]} if frequency else {})} for i in order]
    return {"images": images, "annotations": annotations, "categories": categories}


def load_file(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with models, photos, annotations and a config."""
    root = tmp_path_factory.mktemp("world")
    sys.path.insert(0, str(ROOT / "tests" / "encoders"))
    from tiny import write_model

    write_model(root / "clip")
    load_file("tiny_rankers", ROOT / "tests" / "rankers" / "conftest.py").save_tiny_model("llava", root / "llava")
    for i, photo in enumerate((data.coffee()[:200, :320], data.chelsea()[:200, :320])):
        Image.fromarray(photo).save(root / f"{i}.png")
    (root / "ann_calib.json").write_text(json.dumps(annotation_file()))
    recognizer = {
        "vocabulary": str(root / "ann_test.json"),
        "cropper": {"type": "RegionCropper"},
        "encoder": {"type": "OpenClipEncoder", "model": f"local-dir:{root}/clip"},
        "memory": {"type": "TextMemory", "cache_dir": str(root / "cache")},
        "num_candidates": 3,
        "ranker": {"type": "TransformersRanker", "model": str(root / "llava"), "limits": {"decisive_margin": 0.0}},
    }
    dataset = {"data_root": str(root), "ann_file": "ann_test.json"}
    for name, model in (("config", {"recognizer": recognizer}), ("nested", {"roi_head": {"recognizer": recognizer}})):
        Config({"model": model, "test_dataloader": {"dataset": dataset}}).dump(str(root / f"{name}.py"))
    return root


@pytest.mark.parametrize(("name", "where"), [("config", "recognizer"), ("nested", "roi_head.recognizer")])
def test_from_config_to_config(world, tmp_path, capsys, name, where):
    assert main([str(world / f"{name}.py"), "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert (result["regions"], result["ranker"]["asked"], result["ranker"]["decisive"]) == (10, 10, 0)
    assert 0 <= result["alpha"] <= 1
    assert result["nll_fused"] <= min(result["nll_retrieval"], result["nll_ranker_tempered"]) + 1e-9
    assert len(result["AP_over_weight"]) == len(result["APr_over_weight"]) == len(WEIGHTS)
    assert (tmp_path / "out" / "ap_over_weight.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "ranked completely" in printed
    assert "best_fusion.py" in printed
    best = RegionRecognizer.from_config(tmp_path / "out" / "best_fusion.py", vocabulary=NAMES)
    assert best.fusion == LogLikFusion(alpha=round(result["alpha"], 3), temperature=round(result["temperature"], 3))
    margin = result["decisive_margin"]
    assert best.ranker.limits.decisive_margin == (None if margin is None else pytest.approx(margin, abs=1e-4))
    settings = Config.fromfile(tmp_path / "out" / "best_fusion.py").model
    for key in where.split("."):
        settings = settings[key]
    assert settings.ranker.model == str(world / "llava")  # the rest is the config's
    assert not list((tmp_path / "out").glob("*.npy"))


def test_a_threshold_below_which_a_region_gets_no_name(world, tmp_path, capsys):
    command = [str(world / "config.py"), "--out", str(tmp_path), "--precision", "0.1", "--hide", "0.25"]
    options = ["--cfg-options", "model.recognizer.num_candidates=2", "--seed", "4"]
    assert main([*command, *options]) == 0
    result = json.loads((tmp_path / "calibration.json").read_text())["none_of_these"]
    assert result["precision"] >= 0.1
    assert 0 < result["coverage"] <= 1
    assert 0 < result["known"] < 1
    assert f"AUROC, known against hidden: {result['auroc']:.3f}" in capsys.readouterr().out
    assert (tmp_path / "risk_coverage.png").read_bytes()[:4] == b"\x89PNG"
    best = RegionRecognizer.from_config(tmp_path / "none_of_these.py", vocabulary=NAMES)
    assert best.emission == BestPerRegion(min_score=result["min_score"])
    assert isinstance(best.fusion, NoneOfThese)
    assert isinstance(best.fusion.fusion, LogLikFusion)
    assert best.ranker.limits.decisive_margin is None


def test_hidden_categories_are_a_draw_of_all(world):
    kept = hide_categories(40, 0.25, at_least=6, seed=1)
    assert kept == sorted(set(kept)) == hide_categories(40, 0.25, at_least=6, seed=1)
    assert len(kept) == 30
    assert set(kept) <= set(range(40))
    assert kept != hide_categories(40, 0.25, at_least=6, seed=2)
    with pytest.raises(ConfigError, match="hiding 90% of 40 categories leaves 4; 6 to 39 are needed"):
        hide_categories(40, 0.9, at_least=6)
    with pytest.raises(ConfigError, match=r"must be in \(0, 1\), got 1.0"):
        hide_categories(40, 1.0, at_least=6)


def test_a_precision_that_no_threshold_gives_is_said():
    zeros = torch.zeros(5)
    found = OpenSet(torch.rand(5), zeros, zeros.bool(), zeros, zeros.bool(), zeros.bool())
    with pytest.raises(RarError, match="0 of 5 regions are of categories that are not hidden; some of both are needed"):
        fit_threshold(found, 0.95)
    some = replace(found, known=torch.tensor([True, False, True, True, True]))
    with pytest.raises(RarError, match="no threshold gives names of which 95% are right: not even of the surest of 5"):
        fit_threshold(some, 0.95)
    fitted = fit_threshold(replace(some, scores=torch.tensor([0.5, 0.1, 3.14159e-5, 0.2, 0.1]), right=some.known), 0.6)
    assert fitted["min_score"] == 3.142e-5  # rounded up


@pytest.mark.parametrize("text", ["1.5", "0", "many"])
def test_a_share_is_a_share(world, text, capsys):
    with pytest.raises(SystemExit):
        main([str(world / "config.py"), "--precision", text])
    assert f"expected a share in (0, 1], such as 0.95; got {text!r}" in capsys.readouterr().err


def test_a_stopped_run_goes_on_with_its_answers(world, tmp_path):
    first, again = ([str(world / "config.py"), "--out", str(tmp_path)] for _ in range(2))
    assert main(first) == 0
    before = json.loads((tmp_path / "calibration.json").read_text())
    assert main(again) == 0
    after = json.loads((tmp_path / "calibration.json").read_text())
    assert (after["ranker"]["asked"], after["ranker"]["cached"]) == (0, 10)
    assert {**after, "ranker": None} == {**before, "ranker": None}


def test_odd_annotations_are_left_out_and_counted(world, tmp_path, caplog):
    annotations = annotation_file(frequency=False)
    more = [
        {"bbox": [5, 5, 0, 10]},
        {"bbox": [10, 10, 50, 50], "iscrowd": 1},
        {"bbox": [900, 10, 20, 20]},
        {"bbox": None},
    ]
    annotations["annotations"] += [
        {"id": 90 + i, "image_id": 7, "category_id": 11, "area": 1, "iscrowd": 0, **odd} for i, odd in enumerate(more)
    ]
    (tmp_path / "coco.json").write_text(json.dumps(annotations))
    arguments = ["--annotations", str(tmp_path / "coco.json"), "--images", str(world), "--out", str(tmp_path / "out")]
    with caplog.at_level(logging.WARNING):
        assert main([str(world / "config.py"), *arguments]) == 0
    result = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert result["regions"] == 10
    assert "APr_over_weight" not in result  # nothing says which categories are rare
    assert "4 annotations are left out" in caplog.text


def test_the_demo_with_a_tagged_photo_odd_annotations_and_unsorted_categories(tmp_path, monkeypatch, capsys):
    """Zero-width boxes, crowds and nulls are left out; ids that are not sorted keep their labels."""
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))
    annotations = json.loads((PHOTOS / "boxes.json").read_text())
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
    best = Config.fromfile(tmp_path / "out" / "best_fusion.py")
    assert best.model.recognizer.fusion.alpha == pytest.approx(result["alpha"], abs=1e-3)
    assert best.model.recognizer.ranker.type == "TransformersRanker"
    assert main(argv) == 0  # again: every answer is kept
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["ranker"]["asked"] == 0


def test_labels_are_those_of_the_file(world):
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        annotations = annotation_file(order=order)
        regions = find_regions(annotations, world)
        truth = labels_of(regions, annotations["categories"])
        names = [category["name"] for category in annotations["categories"]]
        wanted = [NAMES[11 - record["category_id"]] for record in regions.annotations]
        assert [names[label] for label in truth.tolist()] == wanted


def test_crops_are_not_held(world, tmp_path, monkeypatch):
    """What is asked at a time is bounded, and in the order of the photos."""
    monkeypatch.setattr("rar_mmdet.calibration.ranker.REGIONS_TOGETHER", 5)
    annotations = annotation_file()
    regions = find_regions(annotations, world)
    ranker, seen = FakeRanker(), []
    rank = ranker.rank
    monkeypatch.setattr(ranker, "rank", lambda crops, *rest: seen.append(len(crops)) or rank(crops, *rest))
    recognizer = RegionRecognizer(
        cropper=RegionCropper(), encoder=FakeEncoder(), memory=TextMemory(), category_names=NAMES,
        ranker=ranker, emission=AskAboutAll(4), num_candidates=3,
    )  # fmt: skip
    opinions = ask_about(recognizer, regions, labels_of(regions, annotations["categories"]), tmp_path)
    assert seen == [5, 5]
    assert opinions.ids.shape == opinions.probs.shape == (10, 4)
    whole = recognizer(world / "1.png", regions.boxes_xyxy[5:])
    assert torch.equal(opinions.shortlist(slice(5, 10)).category_ids, whole.shortlist.category_ids)
    assert torch.equal(opinions.ranking[5:].log_probs, whole.ranking.log_probs)


@pytest.fixture
def opinions():
    """Four regions over five categories; retrieval is right in the first, and has the truth among three in three."""
    ids = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [2, 3, 0, 1, 4], [3, 4, 0, 1, 2]], dtype=np.int32)
    probs = np.tile(np.float32([0.5, 0.2, 0.1, 0.1, 0.1]), (4, 1))
    truth = torch.tensor([0, 0, 3, 2])
    return lambda ranking: Opinions(truth, ids, probs, ranking)


def oracle(k, target=(0, 1, 1, -1)):
    target = torch.tensor(target)
    log_probs = torch.full((len(target), k), -8.0)
    log_probs[target >= 0, target[target >= 0]] = 0.0
    log_probs = log_probs.log_softmax(1)
    return Ranking(log_probs.argsort(dim=1, descending=True, stable=True), log_probs, torch.zeros(4, dtype=torch.int64))


def test_an_oracle_gets_all_the_weight_and_full_top1(opinions):
    assert opinions(oracle(3)).target.tolist() == [0, 1, 1, -1]
    result = fit(opinions(oracle(3)))
    assert result["used"] == 3
    assert result["alpha"] == pytest.approx(1.0, abs=1e-5)
    assert result["top1_retrieval"] == 0.25
    assert result["top1_fused"] == result["recall_at_k"] == 0.75


def test_rows_that_are_an_order_alone_say_nothing_about_the_weight(opinions):
    ranking = oracle(3)
    log_probs = ranking.log_probs.clone()
    log_probs[1] = torch.nan
    mixed = Ranking(ranking.order, log_probs, torch.tensor([0, int(RankStatus.PARTIAL), 0, 0]))
    result = fit(opinions(mixed))
    assert result["used"] == 2
    assert result["top1_fused"] == 0.75  # the order still counts for the winner


def test_what_cannot_be_fitted_is_said(opinions):
    with pytest.raises(RarError, match=r"among the K=1 candidates .* K >= 2"):
        fit(opinions(oracle(1, target=(0, -1, -1, -1))))
    silent = Ranking(oracle(3).order, None, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(RarError, match="0 were scored by the ranker"):
        fit(opinions(silent))


def test_ap_of_the_truth_is_one(world):
    annotations = annotation_file()
    regions = find_regions(annotations, world)
    truth = labels_of(regions, annotations["categories"])
    k = torch.arange(4).repeat(len(truth), 1)
    score = Scorer(FakeMemory(vectors=torch.eye(4)), TopPairs(), regions, annotations)
    ranking = Ranking(k[:, :2], torch.zeros(len(truth), 2), torch.zeros(len(truth), dtype=torch.int64))
    certain = (k == truth[:, None]).float()
    found = Opinions(truth, k.numpy().astype(np.int32), certain.numpy(), ranking)
    assert score.summary(found.fused(LogLikFusion(alpha=0.0), regions))["AP"] == pytest.approx(1.0)
    assert curves(found, score, regions, 1.0)["AP"][0] == pytest.approx(1.0)


def test_what_a_fit_changes_in_a_config():
    result = {"alpha": 0.12345, "temperature": 2.0, "decisive_margin": 0.33331}
    fusion = {"type": "LogLikFusion", "alpha": 0.123, "temperature": 2.0}
    assert changes_of(result, {}) == {"fusion": fusion, "ranker": {"limits": {"decisive_margin": 0.3334}}}
    kept = changes_of(result, {"fusion": {"type": "LogLikFusion", "alpha": 0.5, "beta": 0.9}})
    assert kept["fusion"] == {**fusion, "beta": 0.9}
    other = changes_of({**result, "decisive_margin": None}, {"fusion": {"type": "PermuteFusion"}})
    assert other["fusion"] == {**fusion, "_delete_": True}
    assert other["ranker"]["limits"]["decisive_margin"] is None


def test_plot(tmp_path):
    plot({"AP": [0.1 * i / 10 for i in range(11)]}, 0.4, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ranker.ask=generate"], "has no ranker that gives log-probabilities; one with ask=dict"),
        (["ranker=None"], "has no ranker that gives log-probabilities"),
        (["ranker.model=/nowhere"], "'/nowhere': no such folder"),
        (["num_candidates=0"], "num_candidates must be at least 1"),
    ],
)
def test_configs_that_cannot_be_calibrated(world, tmp_path, capsys, options, message):
    changes = [f"model.recognizer.{option}" for option in options]
    assert main([str(world / "config.py"), "--out", str(tmp_path), "--cfg-options", *changes]) == 2
    assert message in capsys.readouterr().err


def test_missing_files(world, tmp_path, capsys):
    assert main(["nowhere.py"]) == 2
    assert "config nowhere.py does not exist" in capsys.readouterr().err
    arguments = [str(world / "config.py"), "--out", str(tmp_path)]
    assert main([*arguments, "--annotations", str(tmp_path / "none.json")]) == 2
    assert "name them: --annotations FILE" in capsys.readouterr().err
    assert main([*arguments, "--images", str(tmp_path)]) == 2
    assert "0.png does not exist; give the folder of the images" in capsys.readouterr().err
