"""Fixed AP equals its definition, written plainly, and lvis-api where both must agree; parts of a set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.scoring import COCO, LVIS, LVIS_FIXED, GroundTruth, evaluate, lvis_summary
from rar_mmdet.scoring.command import main
from rar_mmdet.scoring.image_lists import check_known_images, of_images, read_image_ids
from rar_mmdet.scoring.protocols import note_on_limit, score


@pytest.mark.parametrize("seed", [1, 2, 4, 5, 7, 8, 10, 11])  # those of `make_world` without an annotation of id 0
@pytest.mark.parametrize("limit", [5, 40, 10_000])
def test_any_world_equals_the_definition(reference: SimpleNamespace, seed: int, limit: int) -> None:
    dataset, records = reference.world(seed, images=6, categories=5)
    truth = GroundTruth.from_dataset(dataset, federated=True)
    numbers = lvis_summary(
        evaluate(truth, reference.detections(records), replace(LVIS_FIXED, max_per_category=limit)), truth
    )
    for key, value in reference.fixed_ap(dataset, records, limit).items():
        assert numbers[key] == pytest.approx(value, abs=1e-12), key


@pytest.mark.parametrize("seed", range(6))
def test_equals_lvis_api_without_limits_bit_for_bit(reference: SimpleNamespace, seed: int) -> None:
    """lvis-api with max_dets=-1 and the detections cut beforehand is how others compute fixed AP."""
    dataset, records = reference.world(seed)
    limit = 30
    kept = [
        r
        for k in {r["category_id"] for r in records}
        for r in sorted((r for r in records if r["category_id"] == k), key=lambda r: -r["score"])[:limit]
    ]
    expected = reference.lvis(dataset, kept, "bbox", -1)
    truth = GroundTruth.from_dataset(dataset, federated=True)
    result = evaluate(truth, reference.detections(records), replace(LVIS_FIXED, max_per_category=limit))
    np.testing.assert_array_equal(result.precision[..., 0], expected.eval["precision"])


def test_official_and_fixed_agree_where_no_limit_bites(reference: SimpleNamespace) -> None:
    dataset, records = reference.world(4)
    truth = GroundTruth.from_dataset(dataset, federated=True)
    official, fixed = (evaluate(truth, reference.detections(records), p) for p in (LVIS, LVIS_FIXED))
    np.testing.assert_array_equal(official.precision, fixed.precision)


def test_a_crowded_image_keeps_its_detections_and_a_category_loses_its_worst(reference: SimpleNamespace) -> None:
    dataset, _ = reference.world(4, images=2)
    found = next(a for a in dataset["annotations"] if a["area"] > 0 and not a["ignore"])
    hit = {"image_id": found["image_id"], "category_id": found["category_id"], "bbox": found["bbox"], "score": 0.1}
    other = next(k["id"] for k in dataset["categories"] if k["id"] != found["category_id"])
    noise = [hit | {"category_id": other, "score": 0.9}] * 300
    truth = GroundTruth.from_dataset(dataset, federated=True)

    def best(records: list[dict[str, Any]], protocol: Any) -> float:
        row = truth.category_ids.tolist().index(found["category_id"])
        return float(evaluate(truth, reference.detections(records), protocol).recall[0, row, 0, -1])

    assert best([*noise, hit], LVIS) == 0  # 300 others of the image are better
    assert best([*noise, hit], LVIS_FIXED) > 0
    miss = hit | {"bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.5}
    assert best([*[miss] * 9_999, hit], LVIS_FIXED) > 0
    assert best([*[miss] * 10_000, hit], LVIS_FIXED) == 0
    result = evaluate(truth, reference.detections([*[miss] * 10_000, hit]), LVIS_FIXED)
    assert result.matches.dropped["beyond the limit per category"] == 1


def test_a_limit_per_image_is_noticed(reference: SimpleNamespace) -> None:
    one = {"category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}
    records = [one | {"image_id": i} for i in range(5) for _ in range(9)]
    assert "5 of 5 images have 9 detections and none has more" in note_on_limit(reference.detections(records))[0]
    uneven = [r for r in records for _ in range(r["image_id"] + 1)]
    assert "1 of 5 images" in note_on_limit(reference.detections(uneven))[0]
    assert note_on_limit(reference.detections(records[:9])) == []


def test_both_numbers_from_the_command(reference: SimpleNamespace, tmp_path: Path) -> None:
    dataset, records = reference.world(5)
    results, annotations, out = (tmp_path / name for name in ("r.json", "a.json", "n.json"))
    results.write_text(json.dumps(records))
    annotations.write_text(json.dumps(dataset))
    assert main([str(results), str(annotations), "--protocol", "lvis-fixed", "--json", str(out)]) == 0
    numbers = json.loads(out.read_text())
    expected = reference.lvis(dataset, records).results
    assert {key: numbers[f"bbox_{key}"] for key in expected} == dict(expected)
    assert numbers["bbox_AP_fixed"] == pytest.approx(reference.fixed_ap(dataset, records)["AP"], abs=1e-12)
    assert "bbox_AR_fixed" in numbers


def test_two_files_are_compared_by_fixed_ap(reference: SimpleNamespace, tmp_path: Path) -> None:
    dataset, records = reference.world(5)
    weaker = [record | {"score": -record["score"]} for record in records]
    for name, content in (("a", dataset), ("one", records), ("other", weaker)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = [str(tmp_path / f"{name}.json") for name in ("one", "a", "other", "n")]
    arguments = [*paths[:2], "--protocol", "lvis-fixed", "--compare", paths[2], "--json", paths[3], "--resamples", "20"]
    assert main(arguments) == 0
    numbers = json.loads((tmp_path / "n.json").read_text())
    compared = numbers["compare"]["numbers"]["bbox_AP_fixed"]
    assert compared["first"] == numbers["bbox_AP_fixed"]
    assert compared["other"] == pytest.approx(reference.fixed_ap(dataset, weaker)["AP"], abs=1e-12)
    assert compared["low"] <= compared["difference"] <= compared["high"]
    assert "bbox_AP" not in numbers["compare"]["numbers"]


@pytest.mark.parametrize("form", ["json", "text", "annotations"])
def test_part_of_a_set_is_scored_as_a_file_of_that_part(reference: SimpleNamespace, tmp_path: Path, form: str) -> None:
    dataset, records = reference.world(7, images=8)
    ids = [image["id"] for image in dataset["images"]][:4]
    part = {
        **dataset,
        "images": [i for i in dataset["images"] if i["id"] in ids],
        "annotations": [a for a in dataset["annotations"] if a["image_id"] in ids],
    }
    texts = {"json": json.dumps(ids), "annotations": json.dumps(part)}
    (tmp_path / "list").write_text(texts.get(form, "# minival\n" + "\n".join(map(str, ids)) + "\n"))
    (tmp_path / "r.json").write_text(json.dumps(records))
    (tmp_path / "a.json").write_text(json.dumps(dataset))
    assert read_image_ids(tmp_path / "list") == ids
    arguments = [str(tmp_path / "r.json"), str(tmp_path / "a.json"), "--protocol", "lvis-fixed"]
    arguments += ["--images", str(tmp_path / "list"), "--json", str(tmp_path / "n.json")]
    assert main(arguments) == 0
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers.pop("images_scored") == len(ids)
    truth = GroundTruth.from_dataset(part, federated=True)
    detections = of_images(reference.detections(records), ids)
    assert numbers == score(truth, detections, LVIS_FIXED).numbers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "not complete JSON"),
        ("[1.5]", r"holds 1\.5; expected image ids"),
        ("", "holds no id"),
        ('{"a": 1}', "holds no id"),
    ],
)
def test_other_lists_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list").write_text(content)
    with pytest.raises(AnnotationFileError, match=message):
        read_image_ids(tmp_path / "list")


def test_images_that_are_nowhere_are_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationFileError, match="1 of the 2 images of the list are not in val, such as 9. Is"):
        check_known_images([1, 9], [1, 2], "val")
    with pytest.raises(AnnotationFileError, match="the annotations have 1: write ids as they do"):
        check_known_images(["1"], [1, 2], "val")
    with pytest.raises(AnnotationFileError, match="list .*none"):
        read_image_ids(tmp_path / "none")


def test_base_and_novel_categories_have_an_ap_each(reference: SimpleNamespace) -> None:
    dataset, records = reference.world(8)
    for category in dataset["categories"]:
        category["novel"] = category["id"] % 2 == 0
    truth = GroundTruth.from_dataset(dataset, federated=False)
    numbers = score(truth, reference.detections(records), COCO).numbers
    for key, novel in (("base", False), ("novel", True)):
        ids = [k["id"] for k in dataset["categories"] if k["novel"] is novel]
        part = GroundTruth.from_dataset(dataset, federated=False, category_ids=ids)
        kept = [r for r in records if r["category_id"] in ids]
        alone = score(part, reference.detections(kept), COCO.having(max_dets=(1, 10, 100)))
        assert numbers[f"bbox_AP_{key}"] == alone.numbers["bbox_AP"]
    del dataset["categories"][0]["novel"]
    with pytest.raises(AnnotationFileError, match="novel.*true or false, as the other categories have"):
        GroundTruth.from_dataset(dataset, federated=False)
