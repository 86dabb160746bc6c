import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import RarError
from rar_mmdet.structures import Ranking, Shortlist

TOOL = Path(__file__).resolve().parents[2] / "tools" / "calibrate_ranker.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("calibrate_ranker", TOOL)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def world(tool):
    """Four regions in two images over five categories; retrieval is right in the first, listed in the first three."""
    ids = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [2, 3, 0, 1, 4], [3, 4, 0, 1, 2]])
    probs = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]]).repeat(4, 1)
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 40, 30], [0, 0, 15, 15], [30, 30, 50, 60]])
    crops = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    regions = tool.Regions(np.array([1, 1, 2, 2]), boxes, torch.tensor([0, 0, 3, 2]), crops, Shortlist(ids, probs))
    annotations = {
        "images": [
            {"id": i, "height": 100, "width": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}
            for i in (1, 2)
        ],
        "categories": [{"id": 10 * (i + 1), "name": str(i), "frequency": "c"} for i in range(5)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(regions.image_ids[n]),
                "category_id": 10 * (int(regions.truth[n]) + 1),
                "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
                "area": float((b[2] - b[0]) * (b[3] - b[1])),
                "iscrowd": 0,
            }
            for n, b in enumerate(boxes)
        ],
    }
    return regions, annotations


def oracle_ranking(target, k):
    log_probs = torch.full((len(target), k), -8.0)
    log_probs[target >= 0, target[target >= 0]] = 0.0
    log_probs = log_probs.log_softmax(1)
    return Ranking(
        log_probs.argsort(dim=1, descending=True, stable=True), log_probs, torch.zeros(len(target), dtype=torch.int64)
    )


def test_target_is_the_column_of_the_truth(world):
    regions, _ = world
    assert regions.target(3).tolist() == [0, 1, 1, -1]
    assert regions.target(5).tolist() == [0, 1, 1, 4]


def test_an_oracle_gets_all_the_weight_and_full_top1(tool, world):
    regions, _ = world
    result = tool.fit(regions, oracle_ranking(regions.target(3), 3), 3)
    assert result["used"] == 3
    assert result["alpha"] == pytest.approx(1.0, abs=1e-5)
    assert result["top1_retrieval"] == 0.25
    assert result["top1_fused"] == result["recall_at_k"] == 0.75
    assert result["nll_fused"] <= min(result["nll_retrieval"], result["nll_ranker_tempered"]) + 1e-9


def test_ap_of_the_truth_is_one(tool, world):
    regions, annotations = world
    certain = (regions.shortlist.category_ids == regions.truth[:, None]).float()
    summary = tool.average_precision(regions, certain, annotations, TopPairs(max_per_image=300))
    assert summary["AP"] == pytest.approx(1.0)
    retrieval = tool.average_precision(regions, regions.shortlist.probs, annotations, TopPairs(max_per_image=300))
    assert retrieval["AP"] < 1.0


def test_ranks_in_chunks(tool, world):
    regions, _ = world
    seen = []

    def rank(crops, shortlist, names):
        seen.append(len(crops))
        return Ranking.identity(len(crops), shortlist.depth)

    ranking = tool.rank(SimpleNamespace(rank=rank), regions, ["x"] * 5, 3, chunk=3)
    assert seen == [3, 1]
    assert tuple(ranking.order.shape) == (4, 3)
    assert ranking.log_probs is None


def test_plot(tool, tmp_path):
    tool.plot({"AP": [0.1 * i / 10 for i in range(11)]}, 0.4, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_missing_config_and_images(tool, tmp_path, capsys):
    arguments = ["nowhere.py", "--annotations", "a.json", "--images", "i", "--out", str(tmp_path)]
    assert tool.main(arguments) == 2
    assert "config nowhere.py does not exist" in capsys.readouterr().err
    annotations = {
        "images": [{"id": 1, "coco_url": "http://images.cocodataset.org/val2017/000001.jpg"}],
        "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1], "category_id": 1}],
    }
    with pytest.raises(FileNotFoundError, match=r"val2017/000001.jpg does not exist; give the folder"):
        list(tool.read_images(json.loads(json.dumps(annotations)), tmp_path, None))


def test_what_cannot_be_fitted_is_said(tool, world):
    regions, _ = world
    ranking = oracle_ranking(regions.target(1), 1)
    with pytest.raises(RarError, match=r"among the K=1 candidates .* K >= 2"):
        tool.fit(regions, ranking, 1)
    nobody = tool.Regions(**{**regions.__dict__, "truth": torch.full((4,), 99)})
    with pytest.raises(RarError, match="0 of 4 regions have their truth"):
        tool.fit(nobody, oracle_ranking(nobody.target(3), 3), 3)
