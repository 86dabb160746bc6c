"""The metrics give the keys and values of MMDet's, in the same places."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric, LVISMetric
from mmdet.evaluation.functional import bbox_overlaps
from mmdet.evaluation.functional.recall import _recalls
from mmdet.evaluation.metrics.lvis_metric import LVISFixedAPMetric
from mmengine.logging import MMLogger

from rar_mmdet.errors import AnnotationFileError, DetectionError, MetricConfigError, VocabularyError
from rar_mmdet.evaluation import SparseCocoMetric, SparseLVISMetric
from rar_mmdet.registry import METRICS


@pytest.fixture
def world(reference: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """An annotation file with masks and the predictions of a detector for it."""
    dataset, _ = reference.world(4, images=5)
    dataset["categories"].sort(key=lambda c: c["id"])  # MMDet's classwise names need ids in order
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(dataset))
    rng = np.random.default_rng(0)
    samples = []
    for image in dataset["images"]:
        near = [a["bbox"] for a in dataset["annotations"] if a["image_id"] == image["id"]] or [[0, 0, 9, 9]]
        picks = np.array([near[i] for i in rng.integers(0, len(near), 40)], np.float32)
        corner = picks[:, :2] + rng.random((40, 2), np.float32)
        boxes = np.concatenate([corner, corner + picks[:, 2:] + 1], axis=1)
        masks = np.zeros((40, 200, 200), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
            mask[y1:y2, x1:x2] = True
        pred = {
            "bboxes": torch.tensor(boxes),
            "scores": torch.tensor(rng.random(40).round(1).astype(np.float32)),
            "labels": torch.tensor(rng.integers(0, 5, 40)),
            "masks": torch.tensor(masks),
        }
        samples.append({"img_id": image["id"], "ori_shape": (200, 200), "pred_instances": pred})
    classes = [c["name"] for c in dataset["categories"]]
    return SimpleNamespace(dataset=dataset, path=str(path), samples=samples, classes=classes)


def run(metric: Any, world: SimpleNamespace, samples: list | None = None) -> dict[str, float]:
    metric.dataset_meta = {"classes": world.classes}
    samples = copy.deepcopy(world.samples if samples is None else samples)
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(size=len(samples))


@contextlib.contextmanager
def warnings_of_mmengine(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """MMEngine's loggers do not pass on what they log."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger=logger.name):
        yield
    logger.removeHandler(caplog.handler)


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one) == list(other)
    np.testing.assert_array_equal([float(v) for v in one.values()], [float(v) for v in other.values()])


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"metric": ["bbox", "segm"], "classwise": True}, id="bbox-segm-classwise"),
        pytest.param({"metric_items": ["mAP", "mAP_s", "AR@100", "AR_l@1000"]}, id="items"),
        pytest.param({"metric": "proposal"}, id="proposal"),
        pytest.param({"proposal_nums": (1, 10, 100), "iou_thrs": np.array([0.5, 0.6])}, id="limits-and-thresholds"),
    ],
)
def test_coco_metric_equals_mmdet(world: SimpleNamespace, config: dict) -> None:
    for classes in (world.classes, world.classes[1:4]):
        world.classes = classes
        for sample in world.samples:
            sample["pred_instances"]["labels"].clamp_(max=len(classes) - 1)
        same(run(SparseCocoMetric(world.path, **config), world), run(CocoMetric(world.path, **config), world))


def test_lvis_metric_equals_mmdet(world: SimpleNamespace) -> None:
    config = {"metric": ["bbox", "segm"], "classwise": True}
    same(run(SparseLVISMetric(world.path, **config), world), run(LVISMetric(world.path, **config), world))
    config = {"metric_items": ["AP", "APr", "AR@300", "ARs@300"]}
    same(run(SparseLVISMetric(world.path, **config), world), run(LVISMetric(world.path, **config), world))


def test_annotations_of_the_samples_equal_a_file(world: SimpleNamespace) -> None:
    """Also for annotations of id 0, which conversion must not produce."""
    labels = {c["id"]: i for i, c in enumerate(world.dataset["categories"])}
    for sample in world.samples:
        anns = [a for a in world.dataset["annotations"] if a["image_id"] == sample["img_id"]]
        sample["instances"] = [
            {
                "bbox": [a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]],
                "bbox_label": labels[a["category_id"]],
                "ignore_flag": a["iscrowd"],
            }
            for a in anns
        ]
    same(run(SparseCocoMetric(), world), run(CocoMetric(), world))


def test_v3det_limit_and_tree(world: SimpleNamespace, tmp_path: Path) -> None:
    stock = CocoMetric(world.path, proposal_nums=[300], use_mp_eval=True)
    ours = SparseCocoMetric(world.path, proposal_nums=[300], use_mp_eval=True)
    expected = run(stock, world)
    same(run(ours, world), expected)
    tree = tmp_path / "tree.json"
    tree.write_text(json.dumps({"2": 1, "3": 1}))
    numbers = run(SparseCocoMetric(world.path, proposal_nums=[300], category_tree=str(tree)), world)
    assert {k: v for k, v in numbers.items() if not k.endswith("_tree")} == expected
    assert numbers["coco/bbox_mAP_tree"] >= numbers["coco/bbox_mAP"]


def test_fixed_ap_stands_beside_the_official_numbers(world: SimpleNamespace) -> None:
    official = run(SparseLVISMetric(world.path, metric=["bbox", "segm"]), world)
    numbers = run(SparseLVISMetric(world.path, metric=["bbox", "segm"], fixed_ap=True, digits=None), world)
    assert {k: round(v, 3) for k, v in numbers.items() if not k.endswith("_fixed")} == official
    stock = run(LVISFixedAPMetric(world.path), world)
    for name, value in stock.items():
        assert numbers[f"lvis/bbox_{name.split('/')[1]}_fixed"] == pytest.approx(float(value), abs=1e-12)


def test_base_and_novel_categories(world: SimpleNamespace) -> None:
    for category in world.dataset["categories"]:
        category["novel"] = category["id"] < 3
    Path(world.path).write_text(json.dumps(world.dataset))
    numbers = run(SparseCocoMetric(world.path, classwise=True, digits=None), world)
    for key, ids in (("base", (3, 4, 5, 6)), ("novel", (1, 2))):
        values = [v for i in ids if not np.isnan(v := numbers[f"coco/c{i}_precision"])]
        assert numbers[f"coco/bbox_AP_{key}"] == pytest.approx(np.mean(values) if values else -1)


def test_images_of_a_list(world: SimpleNamespace, tmp_path: Path) -> None:
    ids = [sample["img_id"] for sample in world.samples[:2]]
    (tmp_path / "minival.txt").write_text("\n".join(map(str, ids)))
    numbers = run(SparseLVISMetric(world.path, img_ids=str(tmp_path / "minival.txt")), world)
    assert numbers == run(SparseLVISMetric(world.path, img_ids="seen"), world, world.samples[:2])
    assert numbers["lvis/images_scored"] == 2


def test_result_files_equal_mmdet(world: SimpleNamespace, tmp_path: Path) -> None:
    for cls, name in ((CocoMetric, "a"), (SparseCocoMetric, "b")):
        numbers = run(
            cls(world.path, metric=["bbox", "segm"], format_only=True, outfile_prefix=f"{tmp_path}/{name}"), world
        )
        assert numbers == {}
    for kind in ("bbox", "segm"):
        assert (tmp_path / f"a.{kind}.json").read_text() == (tmp_path / f"b.{kind}.json").read_text()


def test_proposal_fast_equals_mmdets_greedy_recall(world: SimpleNamespace) -> None:
    """MMDet's eval_recalls itself fails on NumPy >= 1.24; its inner part is given the ragged array it means."""
    ious = np.empty(len(world.samples), object)
    for i, sample in enumerate(world.samples):
        anns = [a for a in world.dataset["annotations"] if a["image_id"] == sample["img_id"] and not a["iscrowd"]]
        anns = [a for a in anns if not a["ignore"]]
        boxes = np.array([a["bbox"] for a in anns], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        ious[i] = bbox_overlaps(boxes, sample["pred_instances"]["bboxes"].numpy())
    for annotation in world.dataset["annotations"]:
        annotation["iscrowd"] = annotation["iscrowd"] or annotation["ignore"]
    Path(world.path).write_text(json.dumps(world.dataset))
    thresholds = np.linspace(0.5, 0.95, 10)
    expected = _recalls(ious, np.array([1, 10, 30]), thresholds).mean(axis=1)
    numbers = run(SparseCocoMetric(world.path, metric="proposal_fast", proposal_nums=(1, 10, 30)), world)
    np.testing.assert_allclose(list(numbers.values()), expected, rtol=1e-12)


def test_a_subset_warns_or_is_scored_alone(world: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    some = world.samples[:2]
    with warnings_of_mmengine(caplog):
        whole = run(SparseLVISMetric(world.path), world, some)
    assert "2 of the 5 images" in caplog.text
    assert "--cfg-options test_evaluator.0.img_ids=seen" in caplog.text
    seen = run(SparseLVISMetric(world.path, img_ids="seen"), world, some)
    assert seen.pop("lvis/images_scored") == 2
    assert seen["lvis/bbox_AP"] > whole["lvis/bbox_AP"]
    ids = {s["img_id"] for s in some}
    cut = {**world.dataset, "images": [i for i in world.dataset["images"] if i["id"] in ids]}
    cut["annotations"] = [a for a in cut["annotations"] if a["image_id"] in ids]
    Path(world.path).write_text(json.dumps(cut))
    same(seen, run(SparseLVISMetric(world.path), world, some))


def test_padded_images_of_a_distributed_run_count_once(world: SimpleNamespace) -> None:
    same(
        run(SparseLVISMetric(world.path), world, [*world.samples, world.samples[0]]),
        run(SparseLVISMetric(world.path), world),
    )


def test_what_is_kept_is_arrays_and_survives_gathering(world: SimpleNamespace) -> None:
    metric = SparseLVISMetric(world.path)
    metric.dataset_meta = {"classes": world.classes}
    metric.process({}, world.samples)
    sizes = [len(pickle.dumps(record, protocol=2)) for record in metric.results]
    assert max(sizes) < 40 * (16 + 4 + 4) + 1500  # boxes, score and label of 40 detections, and a header
    metric.results = pickle.loads(pickle.dumps(metric.results, protocol=2))
    same(metric.evaluate(len(world.samples)), run(SparseLVISMetric(world.path), world))


def test_no_detection_at_all_scores_zero(world: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    for sample in world.samples:
        pred = sample["pred_instances"]
        sample["pred_instances"] = {key: value[:0] for key, value in pred.items()}
    with warnings_of_mmengine(caplog):
        assert run(SparseLVISMetric(world.path, metric=["bbox", "segm"]), world)["lvis/bbox_AP"] == 0.0
        assert run(SparseCocoMetric(world.path), world)["coco/bbox_mAP"] == 0.0
    assert caplog.text.count("there is no detection at all") == 2  # once in an evaluation


def test_bfloat16_predictions(world: SimpleNamespace) -> None:
    for sample in world.samples:
        pred = sample["pred_instances"]
        pred["scores"], pred["bboxes"] = pred["scores"].bfloat16(), pred["bboxes"].bfloat16()
    assert 0 <= run(SparseLVISMetric(world.path, digits=None), world)["lvis/bbox_AP"] < 1


def test_builds_from_the_registry(world: SimpleNamespace) -> None:
    metric = METRICS.build({"type": "rar_mmdet.SparseLVISMetric", "ann_file": world.path})
    assert isinstance(metric, SparseLVISMetric)
    with pytest.raises(TypeError, match="claswise"):
        METRICS.build({"type": "SparseLVISMetric", "ann_file": world.path, "claswise": True})


def test_config_errors(world: SimpleNamespace) -> None:
    with pytest.raises(KeyError, match="metric should be one of"):
        SparseCocoMetric(world.path, metric="boxes")
    with pytest.raises(AssertionError, match="outfile_prefix='a/b/name'"):
        SparseCocoMetric(world.path, format_only=True)
    with pytest.raises(KeyError, match='metric item "mAPs" is not supported'):
        SparseCocoMetric(world.path, metric_items=["mAPs"])
    with pytest.raises(KeyError, match='metric item "mAP" is not supported'):
        SparseLVISMetric(world.path, metric_items=["mAP"])
    with pytest.raises(MetricConfigError, match="needs ann_file"):
        SparseLVISMetric()
    with pytest.raises(TypeError, match="use_mp_eval"):
        SparseLVISMetric(world.path, use_mp_eval=True)  # type: ignore[call-arg]
    with pytest.raises(MetricConfigError, match="expected values above 0 and up to 1"):
        SparseCocoMetric(world.path, iou_thrs=[50, 75])
    with pytest.raises(MetricConfigError, match="expected numbers of detections from 1 on"):
        SparseCocoMetric(world.path, proposal_nums=())
    with pytest.raises(MetricConfigError, match="say 'all', 'seen' or a file that lists image ids"):
        SparseCocoMetric(world.path, img_ids="some")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="backend_args"):
        SparseCocoMetric(world.path, file_client_args={})
    with pytest.raises(AnnotationFileError, match="none.json does not exist"):
        SparseLVISMetric("none.json")
    with pytest.raises(MetricConfigError, match="AR@1000 is not measured by metric='bbox'"):
        run(SparseCocoMetric(world.path, proposal_nums=[300], metric_items=["AR@1000"]), world)


def test_unusable_predictions_are_named(world: SimpleNamespace) -> None:
    metric = SparseLVISMetric(world.path)
    broken = copy.deepcopy(world.samples[0])
    broken["pred_instances"]["scores"][3] = float("nan")
    with pytest.raises(DetectionError, match="detection 3 has score nan"):
        metric.process({}, [broken])
    broken["pred_instances"]["scores"][3] = 0.5
    broken["pred_instances"]["labels"][0] = 17
    with pytest.raises(DetectionError, match="label 17, but the annotations have 6"):
        run(metric, world, [broken])
    del world.samples[1]["pred_instances"]["masks"]
    with pytest.raises(DetectionError, match="has no masks"):
        run(SparseLVISMetric(world.path, metric="segm"), world)
    with pytest.raises(MetricConfigError, match="no `instances`"):
        run(SparseCocoMetric(), world)
    broken = copy.deepcopy(world.samples[0])
    broken["pred_instances"]["bboxes"] = torch.cat([broken["pred_instances"]["bboxes"], torch.ones(40, 1)], dim=1)
    with pytest.raises(DetectionError, match=r"bboxes .40, 5., scores .40,. and labels .40,. do not fit together"):
        metric.process({}, [broken])
    broken = copy.deepcopy(world.samples[0])
    broken["pred_instances"]["labels"] = broken["pred_instances"]["labels"] + 0.5
    with pytest.raises(DetectionError, match="labels are .* expected whole numbers"):
        metric.process({}, [broken])
    metric = SparseLVISMetric(world.path, metric="segm")
    broken = copy.deepcopy(world.samples[0])
    broken["pred_instances"]["masks"] = broken["pred_instances"]["masks"][:3]
    with pytest.raises(DetectionError, match="3 masks for 40 detections"):
        metric.process({}, [broken])
    broken["pred_instances"]["masks"] = [{"size": [200, 200], "counts": b"1"}] * 40
    with pytest.raises(DetectionError, match="the mask of detection 0 cannot be used: the run lengths add up to 1"):
        metric.process({}, [broken])
    broken["pred_instances"]["mask_scores"] = torch.full((40,), float("nan"))
    broken["pred_instances"]["masks"] = torch.zeros(40, 200, 200)
    with pytest.raises(DetectionError, match=r"mask_scores .40,., expected 40 finite numbers"):
        metric.process({}, [broken])
    world.classes = ["zebra"]
    with pytest.raises(VocabularyError, match="1 of 1 classes are not among the 6 categories"):
        run(SparseCocoMetric(world.path), world)
