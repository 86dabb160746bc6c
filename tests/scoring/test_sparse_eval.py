"""The sparse evaluation equals lvis-api and pycocotools, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rar_mmdet.errors import AnnotationFileError, UnknownImageError
from rar_mmdet.scoring import (
    COCO,
    LVIS,
    V3DET,
    CategoryTree,
    Detections,
    GroundTruth,
    coco_summary,
    evaluate,
    limited_summary,
    lvis_summary,
    per_category_ap,
)
from rar_mmdet.scoring.matching import box_iou_xywh

CATEGORIES = 4
coordinate = st.sampled_from([0, 1, 7.5, 10, 30, 64, 100])
box = st.tuples(coordinate, coordinate, coordinate, coordinate).map(list)
category = st.integers(1, CATEGORIES)
truth_record = st.fixed_dictionaries(
    {"category_id": category, "bbox": box, "iscrowd": st.integers(0, 1), "ignore": st.integers(0, 1)}
)
detection = st.fixed_dictionaries(
    {
        "category_id": st.integers(1, CATEGORIES + 1),
        "bbox": box,
        "score": st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.5000001, 1.0]),
        "copies": st.sampled_from([1, 1, 1, 2, 320]),
    }
)
image = st.fixed_dictionaries(
    {
        "neg_category_ids": st.lists(category, max_size=2),
        "not_exhaustive_category_ids": st.lists(category, max_size=2),
        "truth": st.lists(truth_record, max_size=5),
        "found": st.lists(detection, max_size=8),
    }
)


@st.composite
def worlds(draw: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """0-5 images in any order of ids; ids from 0 or 1."""
    first_id = draw(st.integers(0, 1))
    world: dict[str, Any] = {"images": [], "annotations": []}
    records = []
    for image_id, content in zip(draw(st.permutations(range(5))), draw(st.lists(image, max_size=5)), strict=False):
        record = {"id": image_id, "height": 200, "width": 200}
        world["images"].append(record | {k: v for k, v in content.items() if k.endswith("ids")})
        for truth in content["truth"]:
            area = truth["bbox"][2] * truth["bbox"][3]
            ids = {"id": len(world["annotations"]) + first_id, "image_id": image_id, "area": area}
            world["annotations"].append(truth | ids)
        for found in content["found"]:
            copy = {key: value for key, value in found.items() if key != "copies"} | {"image_id": image_id}
            records += [copy] * found["copies"]
    order = draw(st.permutations(range(1, CATEGORIES + 1)))
    world["categories"] = [{"id": k, "name": f"c{k}", "frequency": "rcfr"[k - 1]} for k in order]
    return world, draw(st.permutations(records)) if len(records) < 40 else records


def assert_equals_lvis_api(reference: SimpleNamespace, world: dict, records: list, iou_type: str = "bbox") -> None:
    expected = reference.lvis(world, records, iou_type)
    truth = GroundTruth.from_dataset(world, federated=True, keep_segmentations=iou_type == "segm")
    result = evaluate(truth, reference.detections(records), LVIS.having(iou_type=iou_type))
    np.testing.assert_array_equal(result.precision[..., 0], expected.eval["precision"])
    np.testing.assert_array_equal(result.recall[..., 0], expected.eval["recall"])
    assert lvis_summary(result, truth) == dict(expected.results)


def assert_equals_pycocotools(
    reference: SimpleNamespace, world: dict, records: list, max_dets: tuple[int, ...], iou_type: str = "bbox"
) -> None:
    expected = reference.coco(world, records, max_dets, iou_type)
    truth = GroundTruth.from_dataset(world, federated=False, keep_segmentations=iou_type == "segm")
    protocol = COCO.having(max_dets=max_dets, iou_type=iou_type)
    result = evaluate(truth, reference.detections(records), protocol)
    np.testing.assert_array_equal(result.precision, expected.eval["precision"])
    np.testing.assert_array_equal(result.recall, expected.eval["recall"])
    if len(max_dets) == 3:
        assert coco_summary(result) == expected.stats.tolist()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(world=worlds())
def test_any_world_equals_both_reference_apis(reference: SimpleNamespace, world: tuple[dict, list]) -> None:
    dataset, records = world
    if not records:  # both reference APIs fail with an IndexError here
        truth = GroundTruth.from_dataset(dataset, federated=True)
        numbers = lvis_summary(evaluate(truth, Detections.empty(), LVIS), truth)
        assert set(numbers.values()) <= {0.0, -1.0}
        return
    assert_equals_lvis_api(reference, dataset, records)
    assert_equals_pycocotools(reference, dataset, records, (1, 10, 100))
    assert_equals_pycocotools(reference, dataset, records, (300,))


@pytest.mark.parametrize("seed", range(12))
def test_crowded_worlds_with_equal_scores(reference: SimpleNamespace, seed: int) -> None:
    dataset, records = reference.world(seed)
    assert_equals_lvis_api(reference, dataset, records)
    assert_equals_pycocotools(reference, dataset, records, (1, 10, 100))
    assert_equals_pycocotools(reference, dataset, records, (2, 5, 7))


@pytest.mark.parametrize("seed", range(4))
def test_masks(reference: SimpleNamespace, seed: int) -> None:
    dataset, records = reference.world(seed, images=3, detections=30)
    for r in records[::2]:  # the others stand for their rectangles
        x, y, w, h = r["bbox"]
        r["segmentation"] = [[x, y, x + w, y, x + w / 2, y + h]]
    assert_equals_lvis_api(reference, dataset, records, "segm")
    assert_equals_pycocotools(reference, dataset, records, (1, 10, 100), "segm")


def test_a_file_shaped_like_lvis_val_100(reference: SimpleNamespace) -> None:
    dataset, records = reference.world(1, images=100, categories=1203, detections=120)
    for a, b in zip(dataset["annotations"], records, strict=False):  # so that something matches
        b.update(image_id=a["image_id"], category_id=a["category_id"], bbox=a["bbox"])
    assert_equals_lvis_api(reference, dataset, records)


def test_more_than_300_detections_keep_the_first_of_equals(reference: SimpleNamespace) -> None:
    dataset, _ = reference.world(2, images=2)
    truth = dataset["annotations"][0]
    hit = {"image_id": truth["image_id"], "category_id": truth["category_id"], "bbox": truth["bbox"], "score": 0.5}
    miss = hit | {"bbox": [0.0, 0.0, 1.0, 1.0]}
    for position in (0, 299, 300):  # the last one is cut off
        records = [miss] * position + [hit] + [miss] * (400 - position)
        assert_equals_lvis_api(reference, dataset, records)


@pytest.mark.parametrize("seed", range(8))
def test_tree_rule_equals_the_official_rule(reference: SimpleNamespace, seed: int) -> None:
    dataset, records = reference.world(seed, detections=120)
    tree = CategoryTree.from_parents({2: 1, 3: 2, 4: 2, 6: 5})
    assert tree.descendants == {1: (2, 3, 4), 2: (3, 4), 5: (6,)}
    expected = reference.coco(dataset, records, (300,), descendants=dict(tree.descendants))
    truth = GroundTruth.from_dataset(dataset, federated=False)
    result = evaluate(truth, reference.detections(records), V3DET, tree)
    np.testing.assert_array_equal(result.precision, expected.eval["precision"])
    np.testing.assert_array_equal(result.recall, expected.eval["recall"])
    plain = evaluate(truth, reference.detections(records), V3DET)
    assert limited_summary(result)["AP"] >= limited_summary(plain)["AP"]  # ignoring can only help


def test_ignored_descendant_is_no_false_positive() -> None:
    dataset = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "bird"}, {"id": 2, "name": "owl"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "area": 2500},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [100, 100, 50, 50], "area": 2500},
        ],
    }
    boxes = np.array([[0, 0, 50, 50], [100, 100, 50, 50]], float)
    found = Detections(np.array([1, 1]), np.array([2, 2]), boxes, np.array([0.9, 0.8]))  # both birds named owls
    truth = GroundTruth.from_dataset(dataset, federated=False)
    assert per_category_ap(evaluate(truth, found, V3DET))[1] == pytest.approx(0.5)
    assert per_category_ap(evaluate(truth, found, V3DET, CategoryTree.from_parents({2: 1})))[1] == pytest.approx(1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(box, box, st.booleans()), min_size=1, max_size=20))
def test_iou_equals_pycocotools(rows: list) -> None:
    from pycocotools import mask as mask_api

    dets, gts, crowd = ([row[i] for row in rows] for i in range(3))
    expected = [mask_api.iou([d], [g], [int(c)])[0, 0] for d, g, c in zip(dets, gts, crowd, strict=True)]
    ours = box_iou_xywh(np.array(dets, float), np.array(gts, float), np.array(crowd))
    np.testing.assert_array_equal(ours, expected)


def test_class_agnostic_recall_equals_pycocotools(reference: SimpleNamespace) -> None:
    dataset, records = reference.world(5)
    dataset["categories"].sort(key=lambda c: c["id"])
    expected = reference.coco(dataset, [r for r in records if r["category_id"] <= 6], (100, 300, 1000))
    expected.params.useCats = 0
    expected.params.catIds = [c["id"] for c in dataset["categories"]]
    expected.evaluate()
    expected.accumulate()
    truth = GroundTruth.from_dataset(dataset, federated=False)
    protocol = COCO.having(max_dets=(100, 300, 1000), use_categories=False)
    result = evaluate(truth, reference.detections(records), protocol)
    np.testing.assert_array_equal(result.recall, expected.eval["recall"])


def test_order_of_the_file_changes_nothing_where_scores_differ(reference: SimpleNamespace) -> None:
    dataset, records = reference.world(7)
    for i, r in enumerate(records):
        r["score"] = i / len(records)
    truth = GroundTruth.from_dataset(dataset, federated=True)
    one = evaluate(truth, reference.detections(records), LVIS)
    other = evaluate(truth, reference.detections(records[::-1]), LVIS)
    np.testing.assert_array_equal(one.precision, other.precision)


def test_text_ids_work(reference: SimpleNamespace) -> None:
    dataset, records = reference.world(3)
    truth = GroundTruth.from_dataset(dataset, federated=False)
    expected = evaluate(truth, reference.detections(records), COCO).precision
    for image in dataset["images"]:
        image["id"] = f"img{image['id']}"
    for record in dataset["annotations"] + records:
        record["image_id"] = f"img{record['image_id']}"
    found = reference.detections([r | {"image_id": 0} for r in records])
    found = Detections(
        np.array([r["image_id"] for r in records], object), found.category_ids, found.boxes_xywh, found.scores
    )
    truth = GroundTruth.from_dataset(dataset, federated=False)
    np.testing.assert_array_equal(evaluate(truth, found, COCO).precision, expected)


def test_subset_of_images_equals_a_file_of_those_images(reference: SimpleNamespace) -> None:
    dataset, records = reference.world(4)
    some = {i["id"] for i in dataset["images"][:2]}
    records = [r for r in records if r["image_id"] in some]
    subset = GroundTruth.from_dataset(dataset, federated=True, image_ids=some)
    cut = {**dataset, "images": dataset["images"][:2]}
    np.testing.assert_array_equal(
        evaluate(subset, reference.detections(records), LVIS).precision[..., 0],
        reference.lvis(cut, records).eval["precision"],
    )


def test_repeated_annotation_ids_count_as_in_the_reference(reference: SimpleNamespace) -> None:
    dataset, records = reference.world(8)
    dataset["annotations"][1]["id"] = dataset["annotations"][0]["id"]
    assert_equals_lvis_api(reference, dataset, records)
    assert_equals_pycocotools(reference, dataset, records, (1, 10, 100))


def test_left_out_detections_are_counted(reference: SimpleNamespace) -> None:
    dataset, _ = reference.world(1)
    ids = {"image_id": dataset["images"][0]["id"], "score": 0.5}
    records = [ids | {"category_id": 999, "bbox": [0, 0, 9, 9]}, ids | {"category_id": 1, "bbox": [0, 0, 0, 9]}]
    truth = GroundTruth.from_dataset(dataset, federated=True)
    dropped = evaluate(truth, reference.detections(records), LVIS).matches.dropped
    assert dropped == {"unknown category": 1, "no area": 1}


def test_unknown_image_is_named(reference: SimpleNamespace) -> None:
    dataset, records = reference.world(1)
    records[3]["image_id"] = 777
    truth = GroundTruth.from_dataset(dataset, federated=False)
    with pytest.raises(UnknownImageError, match="detection 3 is of image 777"):
        evaluate(truth, reference.detections(records), COCO)


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        pytest.param("images", "neg_category_ids", "has no neg_category_ids", id="coco-file-under-lvis"),
        pytest.param("categories", "frequency", "has no frequency, expected 'r', 'c' or 'f'", id="no-frequency"),
        pytest.param("annotations", "bbox", "has no bbox, expected four finite numbers", id="no-box"),
    ],
)
def test_lvis_protocol_says_what_an_annotation_file_lacks(
    reference: SimpleNamespace, section: str, key: str, message: str
) -> None:
    dataset, _ = reference.world(1)
    del dataset[section][0][key]
    with pytest.raises(AnnotationFileError, match=message):
        GroundTruth.from_dataset(dataset, federated=True)


def test_missing_section_is_named() -> None:
    with pytest.raises(AnnotationFileError, match="no list of 'images'"):
        GroundTruth.from_dataset({"annotations": []}, federated=False)


def with_crowds(dataset: dict[str, Any]) -> dict[str, Any]:
    """The dataset with `iscrowd`, which pycocotools needs and LVIS files lack."""
    return {**dataset, "annotations": [{"iscrowd": 0, **a} for a in dataset["annotations"]]}


def test_demo_world(
    reference: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "demo"))
    make_world = pytest.importorskip("make_world").make_world
    root = tmp_path_factory.mktemp("demo")
    make_world(root, 0, photos=(6, 2, 6), workers=1)
    dataset = json.loads((root / "annotations" / "lvis_demo_test.json").read_text())
    rng = np.random.default_rng(0)
    categories = [c["id"] for c in dataset["categories"]]
    records = []
    for a in dataset["annotations"]:  # several labels for each jittered box, as multi-label emission writes them
        for category_id in [a["category_id"], *rng.choice(categories, 8).tolist()]:
            box = (np.array(a["bbox"]) + rng.normal(0, 2, 4)).clip(1).tolist()
            records.append({"image_id": a["image_id"], "category_id": category_id, "bbox": box, "score": rng.random()})
    assert_equals_lvis_api(reference, dataset, records)
    assert_equals_lvis_api(reference, dataset, records, "segm")
    assert_equals_pycocotools(reference, with_crowds(dataset), records, (1, 10, 100))
