"""How a detector's own scores join: the fit finds what the truth was drawn with; the command, with a tiny detector."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from scipy.optimize import minimize
from skimage import data

from rar_mmdet.calibration.detector import FoundRegions, fit_pool, with_box_weight
from rar_mmdet.calibration.detector_command import WEIGHTS
from rar_mmdet.cli import main as command_line
from rar_mmdet.detectors import TransformersDetector
from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import ConfigError, RarError
from rar_mmdet.fusion import LogPool
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.scoring import COCO, Detections, GroundTruth
from rar_mmdet.scoring.protocols import score
from rar_mmdet.testing import make_boxes, make_shortlist

ROOT = Path(__file__).parents[2]
NAMES = ["Cat", "dog", "blue cup", "never seen", "bow"]


def drawn_world(pool, num=4000, depth=12, seed=0):
    """Boxes whose truth is drawn from the pool of retrieval and detector."""
    generator = torch.Generator().manual_seed(seed)
    shortlist = make_shortlist(num, depth, num_categories=20, seed=seed)
    own = torch.rand(num, depth, generator=generator) ** 3
    own[shortlist.category_ids % 2 == 0] = torch.nan
    pooled = pool(shortlist, own)
    column = torch.multinomial(pooled.probs, 1, generator=generator)
    truth = pooled.category_ids.gather(1, column)[:, 0]
    truth[::10] = -1  # covers nothing
    return FoundRegions(
        np.array([0, num // 2, num]),
        make_boxes(num),
        torch.rand(num, generator=generator),
        truth,
        shortlist.category_ids.numpy().astype(np.int32),
        shortlist.probs.numpy(),
        own.numpy(),
    )


@pytest.mark.parametrize("true", [LogPool(0.6, 0.2), LogPool(0.3, 0.02)], ids=str)
def test_the_fit_finds_what_the_truth_was_drawn_with(true):
    found = drawn_world(true)
    pool, result = fit_pool(found)
    assert pool.weight == pytest.approx(true.weight, abs=0.06)
    assert pool.unknown == pytest.approx(true.unknown, rel=0.35)
    assert result["nll_pooled"] < result["nll_retrieval"]
    assert result["top1_pooled"] > result["top1_retrieval"]
    assert (result["boxes"], result["covering"]) == (4000, 3600)
    again = list(found.pooled(pool))
    assert sum(len(one.boxes_xyxy) for one in again) == 4000
    assert torch.equal(next(found.pooled(None)).scores, torch.from_numpy(found.probs[:2000]))


def test_the_fit_is_as_likely_as_what_a_general_optimiser_finds():
    found = drawn_world(LogPool(0.45, 0.1), num=600, seed=3)
    rows = np.flatnonzero(found.truth.numpy() >= 0)
    shortlist, own = found.shortlist(rows)
    target = (shortlist.category_ids == found.truth[torch.from_numpy(rows)][:, None]).float().argmax(1)

    def loss(x):
        logits = (1 - x[0]) * shortlist.probs.double().log() + x[0] * LogPool(0.5, float(np.exp(x[1]))).log_scores(own)
        return -torch.log_softmax(logits, 1).gather(1, target[:, None]).mean().item()

    best = minimize(loss, [0.5, -1.0], bounds=[(0, 1), (np.log(1e-4), 0)], method="L-BFGS-B")
    _, result = fit_pool(found)
    assert result["nll_pooled"] == pytest.approx(best.fun, abs=1e-4)


def two_witnesses(weight, num=3000, names=10, strength=1.3, seed=0):
    """Boxes that two independent witnesses see, each surer than it may be: q^(1-weight) d^weight is Bayes' posterior.

    A witness sees the true name at `strength` and the others at 0, in noise of variance 1, so that with all names alike
    before, the posterior of one is proportional to exp(strength x), and that of both to the product.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(names, (num,), generator=generator)
    seen = [
        strength * torch.nn.functional.one_hot(truth, names) + torch.randn(num, names, generator=generator)
        for _ in "qd"
    ]
    q, d = ((strength * x / w).softmax(dim=1) for x, w in zip(seen, (1 - weight, weight), strict=True))
    probs, ids = q.sort(dim=1, descending=True)
    bayes = (strength * (seen[0] + seen[1])).softmax(dim=1)
    starts = np.arange(num + 1)  # a box a photo
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(num, 4)
    own = d.gather(1, ids)
    return FoundRegions(starts, boxes, torch.ones(num), truth, ids.numpy(), probs.numpy(), own.numpy()), bayes


def average_precision(found, fusion):
    """COCO's, where every box has a score for every name."""
    photos = range(len(found))
    annotation = {"bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}
    truth = [annotation | {"id": i + 1, "image_id": i, "category_id": int(found.truth[i])} for i in photos]
    categories = [{"id": i, "name": str(i)} for i in range(found.ids.shape[1])]
    images = [{"id": i, "height": 10, "width": 10} for i in photos]
    dataset = {"images": images, "annotations": truth, "categories": categories}
    scores, labels = (torch.cat([getattr(one, key) for one in found.pooled(fusion)]) for key in ("scores", "labels"))
    boxes = np.tile([0.0, 0, 10, 10], (labels.numel(), 1))
    given = Detections(np.repeat(photos, labels.shape[1]), labels.flatten().numpy(), boxes, scores.flatten().numpy())
    return score(GroundTruth.from_dataset(dataset, federated=False), given, COCO).numbers["bbox_AP"]


@pytest.mark.parametrize("weight", [0.35, 0.6])
def test_joined_scores_are_better_than_either_and_the_fit_finds_the_best_weight(weight):
    found, bayes = two_witnesses(weight)
    pool, result = fit_pool(found, floor=1e-30)
    assert pool.weight == pytest.approx(weight, abs=0.03)
    shortlist, own = found.shortlist(slice(None))

    def likelihood(fusion):
        names = fusion(shortlist, own)
        return names.probs[names.category_ids == found.truth[:, None]].double().log().mean().item()

    others = [LogPool(w, floor=1e-30) for w in np.linspace(0, 1, 21)]
    assert likelihood(pool) >= max(map(likelihood, others)) - 1e-4
    # What stands first is what Bayes' rule puts there, and that is right more often than either's first.
    agrees = (pool(shortlist, own).category_ids[:, 0] == bayes.argmax(dim=1)).double().mean()
    assert agrees > 0.98
    alone = {
        w: (LogPool(w, floor=1e-30)(shortlist, own).category_ids[:, 0] == found.truth).double().mean() for w in (0, 1)
    }
    assert result["top1_pooled"] > max(alone.values()) + 0.1
    joined, retrieval, detector = (average_precision(found, f) for f in (pool, None, LogPool(1.0, floor=1e-30)))
    assert joined > max(retrieval, detector) + 0.1


def test_boxes_that_cover_nothing_teach_nothing():
    found = drawn_world(LogPool(), num=40)
    found.truth[:] = -1
    with pytest.raises(RarError, match="of 40 boxes that the detector found 0 cover an annotated object"):
        fit_pool(found)


def test_an_emission_without_box_scores_is_refused():
    assert with_box_weight(TopPairs(), 0.3) == TopPairs(box_score_weight=0.3)
    with pytest.raises(ConfigError, match="int has no box_score_weight"):
        with_box_weight(1, 0.3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny random detector of cats, dogs and red stars, photos annotated with some of what it finds, and a config."""
    root = tmp_path_factory.mktemp("world")
    path = ROOT / "tests" / "detectors" / "tiny_detectors.py"
    spec = importlib.util.spec_from_file_location("tiny_detectors", path)
    module = sys.modules["tiny_detectors"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_detector(root / "detector", "rt_detr")
    detector = TransformersDetector(model=str(root / "detector"), score_threshold=0.0)
    images, annotations = [], []
    for i, photo in enumerate((data.coffee()[:200, :320], data.chelsea()[:200, :320])):
        Image.fromarray(photo).save(root / f"{i}.png")
        images.append({"id": 7 + i, "file_name": f"{i}.png", "height": 200, "width": 320})
        found = detector.detect([photo])[0]
        for box, label in zip(found.boxes_xyxy[:6].tolist(), found.label_ids[:6].tolist(), strict=True):
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            one = {"id": len(annotations) + 1, "image_id": 7 + i, "category_id": 1 + label % 2, "bbox": [x, y, w, h]}
            annotations.append(one | {"area": w * h, "iscrowd": 0})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    file = {"images": images, "annotations": annotations, "categories": categories}
    (root / "ann_calib.json").write_text(json.dumps(file))
    recognizer = {
        "vocabulary": str(root / "ann_test.json"),
        "cropper": {"type": "RegionCropper", "size": 32},
        "encoder": {"type": "rar_mmdet.testing.FakeEncoder"},
        "memory": {"type": "TextMemory", "cache_dir": str(root / "cache")},
        "ranker": {"type": "TransformersRanker", "model": "not/here"},
    }
    model = {
        "type": "rar_mmdet.RARDetector",
        "detector": {"type": "rar_mmdet.TransformersDetector", "model": str(root / "detector"), "score_threshold": 0.0},
        "recognizer": recognizer,
    }
    dataset = {"data_root": str(root), "ann_file": "ann_test.json"}
    Config({"model": model, "test_dataloader": {"dataset": dataset}}).dump(str(root / "config.py"))
    return root


def calibrate(world, out, *more):
    return command_line(["calibrate", "detector", str(world / "config.py"), "--out", str(out), *more])


def test_from_config_to_config(world, tmp_path, capsys):
    assert calibrate(world, tmp_path / "out") == 0
    result = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert result["covering"] >= result["used"] > 0
    assert result["known_truth"] == 1
    assert result["nll_pooled"] <= result["nll_retrieval"] + 1e-9
    assert [len(curve) for curve in result["AP_over_box_weight"].values()] == [len(WEIGHTS)] * 2
    assert result["AP_after"] == max(result["AP_over_box_weight"]["pooled"])
    assert result["AP_before"] == result["AP_over_box_weight"]["retrieval"][WEIGHTS.index(0.5)]
    assert (tmp_path / "out" / "ap_over_box_weight.png").read_bytes()[:4] == b"\x89PNG"
    assert not list((tmp_path / "out").rglob("*.npy"))
    printed = capsys.readouterr().out
    assert "as the config is" in printed
    best = RegionRecognizer.from_config(tmp_path / "out" / "best_detector_fusion.py", vocabulary=NAMES)
    assert best.detector_fusion == LogPool(result["weight"], result["unknown"])
    assert best.emission == TopPairs(300, result["box_score_weight"], 0.5)
    assert best.ranker is not None  # the rest is the config's


def test_what_cannot_be_calibrated_is_said(world, tmp_path, capsys):
    other = "model.detector.type=rar_mmdet.AnnotationDetector"
    assert calibrate(world, tmp_path, "--cfg-options", other) == 2
    assert "calibrate detector runs without MMDetection and needs" in capsys.readouterr().err
    assert calibrate(world, tmp_path, "--cfg-options", "model.detector.model=nobody/nothing") == 2
    assert "hf download nobody/nothing" in capsys.readouterr().err


def test_of_a_detector_that_knows_no_name_the_box_scores_are_fitted(world, tmp_path, capsys):
    file = json.loads((world / "ann_calib.json").read_text())
    for category in file["categories"]:
        category["name"] = f"thing {category['id']}"
    (tmp_path / "things.json").write_text(json.dumps(file))
    assert calibrate(world, tmp_path / "out", "--annotations", str(tmp_path / "things.json")) == 0
    assert "none of the detector's 3 names (cat, dog, red star) is one of the vocabulary's 5" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert list(result["AP_over_box_weight"]) == ["retrieval"]
    best = RegionRecognizer.from_config(tmp_path / "out" / "best_detector_fusion.py", vocabulary=NAMES)
    assert best.detector_fusion is None
    assert best.emission == TopPairs(300, result["box_score_weight"], 0.5)
