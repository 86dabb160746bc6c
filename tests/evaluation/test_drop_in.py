"""What code written for MMDetection's metrics relies on, with the inputs its own unit tests use.

One photo of 640 x 640, masks of 10 x 10, category ids from 0, boxes in double precision; everything found.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mmdet.evaluation
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from rar_mmdet.evaluation import SparseCocoMetric, SparseLVISMetric

BOXES = np.array([[50, 60, 70, 80], [100, 120, 130, 150], [150, 160, 190, 200], [250, 260, 350, 360]], float)
LABELS = np.array([0, 0, 1, 0])
CLASSES = ["car", "bicycle"]
MASK = np.zeros((10, 10), np.uint8, order="F")
MASK[:5, :5] = 1


def text_mask() -> dict[str, Any]:
    mask = mask_api.encode(MASK)
    return {**mask, "counts": mask["counts"].decode()}


def annotation_file(folder: Path, first_category: int = 0) -> str:
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    annotations = [
        {
            "id": i + 1,
            "image_id": 0,
            "category_id": int(label) + first_category,
            "area": float((box[2] - box[0]) * (box[3] - box[1])),
            "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
            "iscrowd": 0,
            "segmentation": text_mask(),
        }
        for i, (box, label) in enumerate(zip(BOXES.tolist(), LABELS, strict=True))
    ]
    dataset = {
        "images": [{"id": 0, "width": 640, "height": 640, "file_name": "a.jpg", **lists}],
        "annotations": annotations,
        "categories": [{"id": i + first_category, "name": n, "frequency": "cf"[i]} for i, n in enumerate(CLASSES)],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(dataset))
    return str(path)


def sample(count: int = 4, **fields: Any) -> dict[str, Any]:
    found = {
        "bboxes": torch.from_numpy(BOXES[:count]),
        "scores": torch.tensor([1.0, 0.98, 0.96, 0.95])[:count],
        "labels": torch.from_numpy(LABELS[:count]),
        "masks": torch.from_numpy(np.stack([MASK] * 4)[:count]),
    }
    return {"pred_instances": found, "img_id": 0, "ori_shape": (640, 640), **fields}


def evaluated(metric: Any, **fields: Any) -> dict[str, float]:
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, [sample(**fields)])
    return metric.evaluate(size=1)


def ones(prefix: str, *names: str) -> dict[str, float]:
    return {f"{prefix}/{name}": 1.0 for name in names}


COCO_NAMES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
LVIS_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


@pytest.mark.parametrize("kinds", [["bbox"], ["bbox", "segm"], ("segm",)])
def test_coco_numbers_and_files(tmp_path: Path, kinds: Any) -> None:
    metric = SparseCocoMetric(annotation_file(tmp_path), metric=kinds, outfile_prefix=f"{tmp_path}/out/test")
    assert evaluated(metric) == ones("coco", *(f"{k}_{n}" for k in kinds for n in COCO_NAMES))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["test.bbox.json", "test.segm.json"]
    assert metric.cat_ids == [0, 1]
    assert metric.img_ids == [0]


def test_lvis_numbers_and_files(tmp_path: Path) -> None:
    path = annotation_file(tmp_path, first_category=1)
    metric = SparseLVISMetric(path, metric=["bbox", "segm"], classwise=True, outfile_prefix=f"{tmp_path}/test")
    expected = ones("lvis", *(f"{k}_{n}" for k in ("bbox", "segm") for n in LVIS_NAMES))
    expected |= ones("lvis", "car_precision", "bicycle_precision")
    assert evaluated(metric) == expected | {"lvis/bbox_APr": -1.0, "lvis/segm_APr": -1.0}
    assert evaluated(SparseLVISMetric(path, metric_items=["APm"])) == {"lvis/bbox_APm": 1.0}


def test_proposals(tmp_path: Path) -> None:
    path = annotation_file(tmp_path, first_category=1)
    names = ("AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000")
    assert evaluated(SparseCocoMetric(path, metric="proposal")) == ones("coco", *names)
    assert evaluated(SparseLVISMetric(path, metric="proposal")) == ones(
        "lvis", "AR@300", "ARs@300", "ARm@300", "ARl@300"
    )
    for cls, prefix in ((SparseCocoMetric, "coco"), (SparseLVISMetric, "lvis")):
        fast = evaluated(cls(path, metric="proposal_fast", proposal_nums=(2, 4)))
        assert fast == {f"{prefix}/AR@2": 0.5, f"{prefix}/AR@4": 1.0}


def test_proposal_recall_of_lvis_takes_no_account_of_names(tmp_path: Path) -> None:
    metric = SparseLVISMetric(annotation_file(tmp_path, first_category=1), metric="proposal")
    metric.dataset_meta = {"classes": CLASSES}
    wrong = sample()
    wrong["pred_instances"]["labels"] = 1 - wrong["pred_instances"]["labels"]
    metric.process({}, [wrong])
    assert metric.evaluate(1)["lvis/AR@300"] == 1.0


@pytest.mark.parametrize("cls", [SparseCocoMetric, SparseLVISMetric])
def test_what_was_given_stays_as_it_was(tmp_path: Path, cls: Any) -> None:
    metric = cls(
        annotation_file(tmp_path, 1), metric="bbox", iou_thrs=[0.3, 0.6], proposal_nums=(7, 9), outfile_prefix="a/b"
    )
    assert metric.iou_thrs == [0.3, 0.6]
    assert metric.metrics == ["bbox"]
    assert metric.proposal_nums == [7, 9]
    assert metric.outfile_prefix == "a/b"
    assert (metric.cat_ids, metric.img_ids) == (None, None)


@pytest.mark.parametrize("cls", [SparseCocoMetric, SparseLVISMetric])
def test_unknown_names_and_no_place_to_write(tmp_path: Path, cls: Any) -> None:
    path = annotation_file(tmp_path, 1)
    with pytest.raises(
        KeyError, match="metric should be one of 'bbox', 'segm', 'proposal', 'proposal_fast', but got inv"
    ):
        cls(path, metric=["invalid"])
    with pytest.raises(KeyError, match='metric item "invalid" is not supported'):
        cls(path, metric_items=["invalid"])
    with pytest.raises(AssertionError):
        cls(path, format_only=True, outfile_prefix=None)


def test_no_detection_in_an_image(tmp_path: Path) -> None:
    """Labels of an empty prediction are floats in MMDetection's own test."""
    for cls in (SparseCocoMetric, SparseLVISMetric):
        metric = cls(annotation_file(tmp_path, 1))
        metric.dataset_meta = {"classes": CLASSES}
        none = {
            "bboxes": torch.zeros(0, 4),
            "scores": torch.zeros(0),
            "labels": torch.zeros(0),
            "masks": torch.zeros(0, 9, 9),
        }
        metric.process({}, [{"pred_instances": none, "img_id": 0, "ori_shape": (640, 640)}])
        assert 0.0 in metric.evaluate(size=1).values()


def instances() -> list[dict[str, Any]]:
    return [
        {"bbox_label": int(label), "bbox": box, "ignore_flag": 0, "mask": text_mask()}
        for box, label in zip(BOXES.tolist(), LABELS, strict=True)
    ]


def test_annotations_of_the_samples_are_written_and_can_be_scored_again(tmp_path: Path) -> None:
    prefix = f"{tmp_path}/test"
    numbers = evaluated(SparseCocoMetric(None, metric=["bbox", "segm"], outfile_prefix=prefix), instances=instances())
    assert numbers == ones("coco", *(f"{k}_{n}" for k in ("bbox", "segm") for n in COCO_NAMES))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["test.bbox.json", "test.gt.json", "test.segm.json"]
    assert evaluated(SparseCocoMetric(f"{prefix}.gt.json", metric=["bbox", "segm"])) == numbers
    stock = mmdet.evaluation.CocoMetric(None, metric="bbox", outfile_prefix=f"{tmp_path}/stock")
    evaluated(stock, instances=instances())
    ours, theirs = (json.loads((tmp_path / f"{name}.gt.json").read_text()) for name in ("test", "stock"))
    for section in ("images", "annotations", "categories"):
        assert ours[section] == theirs[section]
    assert ours.keys() == theirs.keys()


def test_only_format(tmp_path: Path) -> None:
    metric = SparseCocoMetric(annotation_file(tmp_path), format_only=True, outfile_prefix=f"{tmp_path}/test")
    assert evaluated(metric) == {}
    assert json.loads((tmp_path / "test.bbox.json").read_text())[3]["bbox"] == [250.0, 260.0, 100.0, 100.0]


def test_the_stock_metrics_apis_are_there_when_asked_for(tmp_path: Path) -> None:
    path = annotation_file(tmp_path, 1)
    assert SparseCocoMetric(path)._coco_api.get_cat_ids(cat_names=["car"]) == [1]
    assert SparseCocoMetric()._coco_api is None
    pytest.importorskip("lvis")
    assert SparseLVISMetric(path)._lvis_api.get_cat_ids() == [1, 2]


def test_classes_that_share_a_name_have_a_number_each(tmp_path: Path) -> None:
    path = Path(annotation_file(tmp_path, 1))
    content = json.loads(path.read_text())
    content["categories"][1]["name"] = "car"
    path.write_text(json.dumps(content))
    for cls, prefix in ((SparseCocoMetric, "coco"), (SparseLVISMetric, "lvis")):
        metric = cls(str(path), classwise=True)
        metric.dataset_meta = {"classes": ["car", "car"]}
        metric.process({}, [sample()])
        keys = [key for key in metric.evaluate(1) if key.endswith("_precision")]
        assert keys == [f"{prefix}/car (category 1)_precision", f"{prefix}/car (category 2)_precision"]


def test_nothing_at_all_is_scored_without_an_error(tmp_path: Path) -> None:
    """An empty shard on every process."""
    for metric in (
        SparseCocoMetric(annotation_file(tmp_path)),
        SparseCocoMetric(),
        SparseLVISMetric(annotation_file(tmp_path)),
    ):
        metric.dataset_meta = {"classes": CLASSES}
        assert set(metric.evaluate(size=0).values()) <= {0.0, -1.0}
