"""Small worlds, and the reference implementations of scoring run on them."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rar_mmdet._lvis import patch_lvis
from rar_mmdet.scoring import Detections

patch_lvis()
from lvis import LVIS, LVISEval, LVISResults  # noqa: E402 - after the patch, as in a user's program

logging.getLogger("lvis.results").setLevel(logging.ERROR)


class TreeCOCOeval(COCOeval):
    """Oracle of V3Det's second protocol: ignored copies of each annotation below its category, where predicted."""

    descendants: dict[int, tuple[int, ...]] = {}

    def _prepare(self) -> None:
        super()._prepare()
        for gt in [g for image in self.cocoGt.imgs for g in self.cocoGt.imgToAnns[image]]:
            for child in self.descendants.get(gt["category_id"], ()):
                if self._dts[gt["image_id"], child]:
                    self._gts[gt["image_id"], child].append({**gt, "ignore": 1})


def run_lvis_api(
    dataset: dict[str, Any], records: list[dict[str, Any]], iou_type: str = "bbox", max_dets: int = 300
) -> LVISEval:
    truth = LVIS.__new__(LVIS)
    truth.logger, truth.dataset = logging.getLogger("lvis"), copy.deepcopy(dataset)
    truth._create_index()
    evaluator = LVISEval(truth, LVISResults(truth, copy.deepcopy(records), max_dets), iou_type)
    evaluator.run()
    return evaluator


def run_pycocotools(
    dataset: dict[str, Any],
    records: list[dict[str, Any]],
    max_dets: tuple[int, ...] = (1, 10, 100),
    iou_type: str = "bbox",
    descendants: dict[int, tuple[int, ...]] | None = None,
) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy({"info": {}, **dataset})
        truth.createIndex()
        evaluator = TreeCOCOeval(truth, truth.loadRes(copy.deepcopy(records)), iou_type)
        evaluator.descendants = descendants or {}
        evaluator.params.maxDets = list(max_dets)
        evaluator.evaluate()
        evaluator.accumulate()
        if len(max_dets) == 3:
            evaluator.summarize()
    return evaluator


def as_detections(records: list[dict[str, Any]]) -> Detections:
    masks = [r.get("segmentation") for r in records]
    return Detections(
        np.array([r["image_id"] for r in records], np.int64),
        np.array([r["category_id"] for r in records], np.int64),
        np.array([r["bbox"] for r in records], float).reshape(-1, 4),
        np.array([r["score"] for r in records], float),
        masks if any(masks) else None,
    )


def make_world(
    seed: int, images: int = 4, categories: int = 6, detections: int = 80
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Crowds, ignored and empty boxes, equal scores, unknown categories, unordered ids; annotation id 0 in some."""
    rng = np.random.default_rng(seed)
    world: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    records: list[dict[str, Any]] = []
    for image_id in (rng.permutation(images) + 10).tolist():
        lists = {"neg_category_ids": 2, "not_exhaustive_category_ids": 1}
        lists = {key: (rng.choice(categories, n) + 1).tolist() for key, n in lists.items()}
        world["images"].append({"id": image_id, "height": 200, "width": 200, **lists})
        boxes = []
        for _ in range(rng.integers(0, 9)):
            boxes.append([*rng.integers(0, 150, 2).astype(float), *rng.integers(0, 120, 2).astype(float)])
            x, y, w, h = boxes[-1]
            world["annotations"].append(
                {
                    "id": len(world["annotations"]) + int(seed % 3 > 0),
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, categories + 1)),
                    "bbox": boxes[-1],
                    "area": w * h * float(rng.choice([1, 0.7])),
                    "iscrowd": int(rng.random() < 0.2),
                    "ignore": int(rng.random() < 0.1),
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        for _ in range(rng.integers(0, detections)):
            near = boxes[rng.integers(len(boxes))] if boxes and rng.random() < 0.7 else rng.integers(0, 120, 4)
            box = np.maximum(np.array(near) + rng.integers(-3, 4, 4), 0).astype(float).tolist()
            score = float(np.round(rng.random(), 1))
            records.append(
                {"image_id": image_id, "category_id": int(rng.integers(1, categories + 2)), "bbox": box, "score": score}
            )
    for k in (rng.permutation(categories) + 1).tolist():
        world["categories"].append({"id": k, "name": f"c{k}", "frequency": "rcf"[rng.integers(3)]})
    return world, records


def slow_fixed_ap(dataset: dict[str, Any], records: list[dict[str, Any]], limit: int = 10_000) -> dict[str, float]:
    """Fixed AP from its definition (Dave et al., arXiv 2102.01066), one box at a time, in plain Python.

    Of every category the `limit` best detections over all images, those of federated images, greedy matching, and
    precision at 101 recalls as LVIS defines it. Annotations without area do not count; none of `make_world` with an id
    of 0 may be given (lvis-api never finds it).
    """
    lists = {image["id"]: image for image in dataset["images"]}
    recalls = [r / 100 for r in range(101)]
    values: dict[str, list[float]] = {"AP": [], "r": [], "c": [], "f": []}
    for category in dataset["categories"]:
        mine = [r for r in records if r["category_id"] == category["id"]]
        mine = sorted(mine, key=lambda r: -r["score"])[:limit]
        truths: dict[Any, list[dict[str, Any]]] = {}
        for a in dataset["annotations"]:
            if a["category_id"] == category["id"] and a["area"] > 0:
                truths.setdefault(a["image_id"], []).append(a)
        wanted = sum(not a["ignore"] for own in truths.values() for a in own)
        if not wanted:
            continue
        mine = [
            r for r in mine if r["image_id"] in truths or category["id"] in lists[r["image_id"]]["neg_category_ids"]
        ]
        mine = [r for r in mine if r["bbox"][2] * r["bbox"][3] > 0]
        # LVIS goes over images in the order of their ids, and only then sorts by score.
        mine = sorted(sorted(mine, key=lambda r: r["image_id"]), key=lambda r: -r["score"])
        for threshold in np.linspace(0.5, 0.95, 10).tolist():
            free = {image_id: list(own) for image_id, own in truths.items()}
            flags = []
            for r in mine:
                best, best_iou, best_ignored = None, min(threshold, 1 - 1e-10), True
                for a in free.get(r["image_id"], []):
                    iou = plain_iou(r["bbox"], a["bbox"])
                    ignored = bool(a["ignore"])
                    if iou < min(threshold, 1 - 1e-10) or (best is not None and ignored and not best_ignored):
                        continue
                    if best is None or (best_ignored and not ignored) or iou >= best_iou:
                        best, best_iou, best_ignored = a, iou, ignored
                if best is not None:
                    free[r["image_id"]].remove(best)
                    flags.append(None if best_ignored else True)
                else:
                    partly = category["id"] in lists[r["image_id"]]["not_exhaustive_category_ids"]
                    flags.append(None if partly else False)
            points, true, false = [], 0, 0
            for flag in flags:
                true += flag is True
                false += flag is False
                if flag is not None:
                    points.append((true / wanted, true / (true + false)))
            for recall in recalls:
                value = max((p for r, p in points if r >= recall - 1e-12), default=0.0)
                values["AP"].append(value)
                values[category["frequency"]].append(value)
    names = {"AP": "AP", "r": "APr", "c": "APc", "f": "APf"}
    return {names[k]: sum(v) / len(v) if v else -1.0 for k, v in values.items()}


def plain_iou(first: list[float], second: list[float]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    inside = width * height
    return inside / (first[2] * first[3] + second[2] * second[3] - inside)


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """The oracles and builders of this folder's tests."""
    return SimpleNamespace(
        lvis=run_lvis_api,
        coco=run_pycocotools,
        fixed_ap=slow_fixed_ap,
        detections=as_detections,
        world=make_world,
    )
