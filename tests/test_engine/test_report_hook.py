"""Numbers and figures of a test reach the backends that MMEngine's visualizers have."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from mmdet.registry import HOOKS, VISUALIZERS
from PIL import Image

from rar_mmdet.engine import RegionRecordHook
from rar_mmdet.records import RegionRecord, write_records

METRICS = {"lvis/bbox_AP": 0.5, "recognition/top1": 0.25, "note": "text is no number"}


def runner_with(backend, folder, records=True):
    """As much of a runner as the hook sees, its visualizer being a real one."""
    regions = [
        RegionRecord(
            "a", i, (0.0, 0.0, 9.0, 9.0), 1.0, (0, 1), ("cat", "dog"), (0.8, 0.2), (0.8, 0.2), "skipped", truth=i
        )
        for i in range(2)
    ]
    write_records(folder / "regions.jsonl", regions)
    config = {"type": "rar_mmdet.RecognitionVisualizer", "vis_backends": [{"type": backend}], "save_dir": str(folder)}
    visualizer = VISUALIZERS.build({**config, "name": f"{backend} {folder}"})
    hooks = [RegionRecordHook(str(folder / "regions.jsonl"))] if records else []
    return SimpleNamespace(visualizer=visualizer, hooks=hooks)


def test_plain_files(tmp_path):
    runner = runner_with("LocalVisBackend", tmp_path)
    HOOKS.build({"type": "rar_mmdet.ReportHook"}).after_test_epoch(runner, METRICS)
    (scalars,) = tmp_path.rglob("scalars.json")
    numbers = json.loads(scalars.read_text().splitlines()[0])
    assert {name: numbers[name] for name in METRICS if name != "note"} == {
        "lvis/bbox_AP": 0.5, "recognition/top1": 0.25
    }  # fmt: skip
    (recall,) = tmp_path.rglob("report_recall*.png")
    assert np.asarray(Image.open(recall)).shape == (480, 720, 3)


@pytest.mark.parametrize("more", [{"figures": False}, {}], ids=["not wanted", "no records"])
def test_numbers_alone(tmp_path, more):
    runner = runner_with("LocalVisBackend", tmp_path, records=bool(more))
    HOOKS.build({"type": "rar_mmdet.ReportHook", **more}).after_test_epoch(runner, METRICS)
    assert list(tmp_path.rglob("scalars.json"))
    assert not list(tmp_path.rglob("*.png"))


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runner = runner_with("TensorboardVisBackend", tmp_path)
    HOOKS.build({"type": "rar_mmdet.ReportHook"}).after_test_epoch(runner, METRICS)
    runner.visualizer.close()
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert [event.value for event in events.Scalars("lvis/bbox_AP")] == [0.5]
    assert {"report_recall", "report_reliability"} <= set(events.Tags()["images"])
    assert "note" not in events.Tags()["scalars"]
