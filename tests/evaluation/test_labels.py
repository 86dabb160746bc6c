"""What a label means to the metrics: any order or part of the file's names is right, or refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from scoring_worlds import perfect_world

from rar_mmdet.errors import MetricConfigError, VocabularyError
from rar_mmdet.evaluation import SparseCocoMetric, SparseLVISMetric
from rar_mmdet.files.vocabulary import vocabulary_hash

NAMES = ["cat", "dog", "fish"]
METRICS = pytest.mark.parametrize(
    ("cls", "number"), [(SparseCocoMetric, "coco/bbox_mAP"), (SparseLVISMetric, "lvis/bbox_AP")], ids=["coco", "lvis"]
)


def write(folder: Path, dataset: dict[str, Any]) -> str:
    path = folder / "annotations.json"
    path.write_text(json.dumps(dataset))
    return str(path)


def samples(
    dataset: dict[str, Any], records: list[dict[str, Any]], classes: list[str], vocabulary: list[str] | None
) -> list[dict[str, Any]]:
    """Perfect predictions; labels are places of the names in `classes`."""
    name_of = {c["id"]: c["name"] for c in dataset["categories"]}
    label_of = {name: i for i, name in enumerate(classes)}
    out = []
    for image in dataset["images"]:
        found = [r for r in records if r["image_id"] == image["id"] and name_of[r["category_id"]] in label_of]
        boxes = torch.tensor([r["bbox"] for r in found]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        pred = {
            "bboxes": boxes,
            "scores": torch.tensor([r["score"] for r in found]),
            "labels": torch.tensor([label_of[name_of[r["category_id"]]] for r in found], dtype=torch.int64),
        }
        sample: dict[str, Any] = {"img_id": image["id"], "ori_shape": (100, 200), "pred_instances": pred}
        if vocabulary is not None:
            sample["recognition"] = InstanceData(metainfo={"vocabulary": vocabulary_hash(vocabulary)})
        out.append(sample)
    return out


def evaluated(metric: Any, found: list[dict[str, Any]], classes: list[str]) -> dict[str, float]:
    metric.dataset_meta = {"classes": tuple(classes)}
    metric.process({}, copy.deepcopy(found))
    return metric.evaluate(len(found))


@METRICS
@pytest.mark.parametrize(
    "classes",
    [
        pytest.param(NAMES, id="all"),
        pytest.param(NAMES[::-1], id="reversed"),
        pytest.param(["fish", "cat", "dog"], id="turned"),
        pytest.param(NAMES[1:], id="part"),
        pytest.param(["fish", "cat"], id="part-reversed"),
    ],
)
def test_any_order_and_part_is_right_where_the_model_says_its_vocabulary(
    tmp_path: Path, cls: Any, number: str, classes: list[str]
) -> None:
    dataset, records = perfect_world()
    found = samples(dataset, records, classes, classes)
    assert evaluated(cls(write(tmp_path, dataset)), found, classes)[number] == 1.0


@METRICS
def test_another_spelling_is_the_same_vocabulary(tmp_path: Path, cls: Any, number: str) -> None:
    dataset, records = perfect_world()
    for category, name in zip(dataset["categories"], ("hot_dog", "cup_(drink)", "fish"), strict=True):
        category["name"] = name
    classes = ["fish", "hot_dog", "cup_(drink)"]
    found = samples(dataset, records, classes, ["fish", "hot dog", "cup (drink)"])
    assert evaluated(cls(write(tmp_path, dataset)), found, ["fish", "hot dog", "cup (drink)"])[number] == 1.0


@METRICS
@pytest.mark.parametrize(
    "vocabulary",
    [NAMES[::-1], NAMES[:2], ["cat", "dog", "cow"], [*NAMES, "cow"]],
    ids=["order", "part", "other", "more"],
)
def test_a_vocabulary_that_is_not_the_datasets_is_refused(
    tmp_path: Path, cls: Any, number: str, vocabulary: list[str]
) -> None:
    dataset, records = perfect_world()
    found = samples(dataset, records, NAMES, vocabulary)
    with pytest.raises(
        VocabularyError, match="than the dataset's 3 classes .'cat', 'dog', 'fish', .*Point `recognizer.voc"
    ):
        evaluated(cls(write(tmp_path, dataset)), found, NAMES)


def test_labels_of_a_detector_that_does_not_say_their_order(tmp_path: Path) -> None:
    """MMDetection's own datasets number the file's categories, this project's the classes: fine where both agree."""
    dataset, records = perfect_world()
    path = write(tmp_path, dataset)
    part, turned = NAMES[1:], NAMES[::-1]
    assert evaluated(SparseCocoMetric(path), samples(dataset, records, part, None), part)["coco/bbox_mAP"] == 1.0
    for cls, classes, message in (
        (SparseCocoMetric, turned, "3 classes are in another order than the 3 categories of annotation file"),
        (SparseLVISMetric, turned, "3 classes are in another order than the 3 categories of annotation file"),
        (SparseLVISMetric, part, "2 classes are only some of the 3 categories .* with all of its categories"),
    ):
        with pytest.raises(VocabularyError, match=message):
            evaluated(cls(path), samples(dataset, records, classes, None), classes)


@METRICS
@pytest.mark.parametrize(
    ("classes", "message"),
    [
        pytest.param(["cat", "dgo", "fish"], "1 of 3 classes are not among .*'dgo'.*did you mean 'dog'", id="misspelt"),
        pytest.param(["cat", "cat", "fish"], "'cat' is there 2 times in `classes`", id="repeated"),
        pytest.param([*NAMES, "cow"], "1 of 4 classes are not among the 3 categories .*'cow'", id="more"),
    ],
)
def test_classes_that_do_not_fit_the_file_are_named(
    tmp_path: Path, cls: Any, number: str, classes: list[str], message: str
) -> None:
    dataset, records = perfect_world()
    with pytest.raises(VocabularyError, match=message):
        evaluated(cls(write(tmp_path, dataset)), samples(dataset, records, NAMES, classes), classes)


def test_a_dataset_without_classes_is_refused(tmp_path: Path) -> None:
    dataset, records = perfect_world()
    metric = SparseCocoMetric(write(tmp_path, dataset))
    metric.dataset_meta = {}
    metric.process({}, samples(dataset, records, NAMES, None))
    with pytest.raises(MetricConfigError, match="metainfo has no `classes`"):
        metric.evaluate(3)


@pytest.mark.parametrize("part", [["c2", "c5"], ["c5", "c2", "c6"]])
def test_numbers_of_some_classes_are_those_of_lvis_api_over_these(
    reference: SimpleNamespace, tmp_path: Path, part: list[str]
) -> None:
    dataset, _ = reference.world(4, images=5)
    rng = np.random.default_rng(0)
    records = [
        {key: a[key] for key in ("image_id", "category_id")}
        | {"bbox": (np.array(a["bbox"]) + rng.integers(0, 9, 4)).tolist(), "score": float(rng.random())}
        for a in dataset["annotations"] * 3
    ]
    ids = {c["id"] for c in dataset["categories"] if c["name"] in part}
    chosen = [r for r in records if r["category_id"] in ids]
    cut = dataset | {"categories": [c for c in dataset["categories"] if c["id"] in ids]}
    cut["annotations"] = [a for a in dataset["annotations"] if a["category_id"] in ids]
    expected = reference.lvis(cut, [dict(r, bbox=list(r["bbox"])) for r in chosen]).results
    found = samples(dataset, records, part, part)
    for sample in found:  # float32 boxes would not be those of the records to the last digit
        own = [r for r in records if r["image_id"] == sample["img_id"] and r["category_id"] in ids]
        boxes = np.array([r["bbox"] for r in own], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        sample["pred_instances"]["bboxes"] = torch.from_numpy(boxes)
        sample["pred_instances"]["scores"] = torch.tensor([r["score"] for r in own], dtype=torch.float64)
    numbers = evaluated(SparseLVISMetric(write(tmp_path, dataset), digits=None), found, part)
    assert numbers == {
        f"lvis/bbox_{k}": float(expected[k]) for k in ("AP", "AP50", "AP75", *(f"AP{x}" for x in "smlrcf"))
    }


def test_sorted_categories_are_the_order_of_the_labels(tmp_path: Path) -> None:
    """Objects365 v1: the file lists categories out of order, labels follow their ids."""
    dataset, records = perfect_world()
    dataset["categories"] = dataset["categories"][::-1]
    found = samples(dataset, records, NAMES, None)
    path = write(tmp_path, dataset)
    assert evaluated(SparseCocoMetric(path, sort_categories=True), found, NAMES)["coco/bbox_mAP"] == 1.0
    with pytest.raises(VocabularyError, match="in another order"):
        evaluated(SparseCocoMetric(path), found, NAMES)


def test_the_tree_of_v3det_follows_ids_in_any_order(tmp_path: Path) -> None:
    dataset, records = perfect_world()
    for r in records:
        r["category_id"] = {1: 2}.get(r["category_id"], r["category_id"])  # every cat is called a dog
    tree = tmp_path / "tree.json"
    tree.write_text(json.dumps({"dog": "cat"}))
    for classes in (NAMES, NAMES[::-1]):
        found = samples(dataset, records, classes, classes)
        metric = SparseCocoMetric(
            write(tmp_path, dataset), proposal_nums=[300], category_tree=str(tree), classwise=True
        )
        numbers = evaluated(metric, found, classes)
        assert numbers["coco/dog_precision"] < 1
        assert numbers["coco/bbox_mAP_tree"] == round(2 / 3, 3)  # cats are missed, dogs and fish are right
