"""The main job with the shipped weights on a small demo world: test loop, both evaluators, both stages."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from make_world import make_world
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner

from rar_mmdet import RegionRecognizer

CONFIGS = Path(__file__).parents[2] / "configs" / "demo"
NUM_IMAGES = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("main_job") / "demo"
    make_world(root, seed=11, photos=(12, 4, NUM_IMAGES), workers=1)
    return root


def run(name, root, work_dir, extra_metrics=()):
    """Metrics of a demo config on another demo world."""
    register_all_modules(init_default_scope=True)
    config = Config.fromfile(CONFIGS / name)
    ann_file = str(root / "annotations" / "lvis_demo_test.json")
    config.merge_from_dict(
        {
            "work_dir": str(work_dir),
            "log_level": "WARNING",
            "test_dataloader.num_workers": 0,
            "test_dataloader.dataset.data_root": f"{root}{os.sep}",
            "model.recognizer.vocabulary": ann_file,
        }
    )
    for metric in config.test_evaluator:
        metric.ann_file = ann_file
    config.test_evaluator.extend({**metric, "ann_file": ann_file} for metric in extra_metrics)
    with torch.random.fork_rng():
        return Runner.from_cfg(config).test()


@pytest.fixture(scope="module")
def results(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work_dirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAR_MMDET_CACHE", str(folder / "cache"))
        stock = {"type": "mmdet.LVISMetric", "metric": "bbox", "prefix": "stock"}
        return {
            "retrieval": run("clip_demo.py", world, folder / "clip", [stock]),
            "rar": run("rar_demo.py", world, folder / "rar"),
        }


def test_stock_lvis_metric_gives_the_same_numbers(results):
    metrics = results["retrieval"]
    names = [key.removeprefix("stock/") for key in metrics if key.startswith("stock/")]
    assert {"bbox_AP", "bbox_APr", "bbox_APs"} <= set(names)
    for name in names:
        # The stock metric rounds to three decimals; the equality of unrounded numbers is tested with the evaluators.
        assert float(f"{metrics[f'lvis/{name}']:.3f}") == pytest.approx(metrics[f"stock/{name}"], abs=1e-6), name


def test_ranking_improves_on_retrieval(results):
    # With 24 images few categories are verified absent, and AP is near its ceiling; whole worlds are in the README.
    assert results["rar"]["lvis/bbox_AP"] > results["retrieval"]["lvis/bbox_AP"]
    assert results["rar"]["recognition/top1"] > results["retrieval"]["recognition/top1"] + 0.1
    assert results["rar"]["recognition/recall@5"] == results["retrieval"]["recognition/recall@5"]
    assert results["rar"]["recognition/asked"] > 0


def test_retrieval_is_the_shortlist_in_order(results):
    metrics = results["retrieval"]
    assert metrics["recognition/top1"] == metrics["recognition/recall@1"] == metrics["recognition/retrieval_top1"]
    assert metrics["recognition/changed"] == 0


def test_the_benchmark_of_the_head_times_every_part(world, tmp_path):
    """In a process of its own, as a person runs it; its figures of few regions say nothing, that it runs does."""
    benchmark = Path(__file__).parents[2] / "benchmarks" / "head.py"
    sizes = ["--proposals", "8", "--images", "1", "--loader-images", "4"]
    command = [sys.executable, str(benchmark), "--data", f"{world}{os.sep}", *sizes, "--json", "figures.json"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    figures = json.loads((tmp_path / "figures.json").read_text())
    parts = ("detector", "crop", "encoder", "search", "ranker", "emit")  # crops of few regions are the ranker's too
    assert "seconds_ranker_crop" not in figures
    assert all(figures[f"seconds_{part}"] > 0 for part in parts)
    assert sum(figures[f"seconds_{part}"] for part in parts) < figures["seconds_per_image"]
    assert 0 < figures["own_share"] < 1


def test_eight_threads_get_what_one_gets_from_the_demos_models(world, tmp_path, monkeypatch):
    """Encoder, memory and ranker load in whichever thread comes first; answers and names are those of one thread."""
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path))
    ann_file = world / "annotations" / "lvis_demo_test.json"
    content = json.loads(ann_file.read_text())
    jobs = []
    for image in content["images"][:16]:
        boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        xyxy = [[x, y, x + w, y + h] for x, y, w, h in boxes]
        jobs.append((world / "val2017" / image["coco_url"].rsplit("/", 1)[-1], xyxy))
    shared, alone = (RegionRecognizer.from_config(CONFIGS / "rar_demo.py", ann_file) for _ in range(2))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: shared(*job), jobs))
    for job, one in zip(jobs, found, strict=True):
        expected = alone(*job)
        assert one.best_names == expected.best_names
        torch.testing.assert_close(one.fused, expected.fused, rtol=1e-4, atol=1e-7)
        assert torch.equal(one.ranking.order, expected.ranking.order)
