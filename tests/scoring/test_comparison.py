"""Bootstrap: weighted scoring equals scoring a test set in which images are repeated."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rar_mmdet.scoring import LVIS, GroundTruth, evaluate, lvis_summary, per_category_ap
from rar_mmdet.scoring.comparison import _numbers, compare
from rar_mmdet.scoring.sparse_eval import match_detections


def matches(reference: SimpleNamespace, dataset: dict, records: list) -> tuple:
    truth = GroundTruth.from_dataset(dataset, federated=True)
    return truth, match_detections(truth, reference.detections(records), LVIS)


@pytest.mark.parametrize("seed", range(6))
def test_weights_equal_repeated_images(reference: SimpleNamespace, seed: int) -> None:
    dataset, records = reference.world(seed)
    for i, record in enumerate(np.random.default_rng(seed).permutation(len(records))):
        records[record]["score"] = i / len(records)  # copies tie with one another only
    truth, plain = matches(reference, dataset, records)
    weights = np.array([2, 0, 1, 3])[: len(truth.image_ids)]
    repeated: dict = {"images": [], "annotations": [], "categories": dataset["categories"]}
    repeated_records = []
    for image_id, weight in zip(truth.image_ids.tolist(), weights.tolist(), strict=True):
        image = next(i for i in dataset["images"] if i["id"] == image_id)
        for copy in range(weight):
            new = image_id * 100 + copy
            repeated["images"].append({**image, "id": new})
            for a in dataset["annotations"]:
                if a["image_id"] == image_id:
                    repeated["annotations"].append({**a, "image_id": new})
            repeated_records += [{**r, "image_id": new} for r in records if r["image_id"] == image_id]
    for i, a in enumerate(repeated["annotations"]):
        a["id"] = i + 1
    for i, a in enumerate(dataset["annotations"]):
        a["id"] = i + 1
    truth, plain = matches(reference, dataset, records)
    numbers, per_category = _numbers(plain, truth.frequencies, weights)
    big = GroundTruth.from_dataset(repeated, federated=True)
    result = evaluate(big, reference.detections(repeated_records), LVIS)
    expected = lvis_summary(result, big)
    for key, value in numbers.items():
        assert (-1 if np.isnan(value) else value) == pytest.approx(expected[key], abs=1e-12)
    np.testing.assert_allclose(per_category, per_category_ap(result), atol=1e-12)


def test_a_file_against_itself_differs_nowhere(reference: SimpleNamespace) -> None:
    truth, found = matches(reference, *reference.world(4))
    comparison = compare(found, found, truth.frequencies, resamples=10)
    for interval in comparison.numbers.values():
        if not np.isnan(interval.difference):
            assert (interval.difference, interval.low, interval.high) == (0, 0, 0)
            assert not interval.is_clear


def test_a_better_file_is_clearly_better(reference: SimpleNamespace) -> None:
    dataset, _ = reference.world(4, images=12)
    keys = ("image_id", "category_id", "bbox")
    perfect = [{key: a[key] for key in keys} | {"score": 1.0} for a in dataset["annotations"]]
    truth, good = matches(reference, dataset, perfect)
    _, bad = matches(reference, dataset, perfect[::2])
    interval = compare(good, bad, truth.frequencies, resamples=25).numbers["AP"]
    assert interval.is_clear
    assert interval.low < interval.difference < interval.high
    again = compare(good, bad, truth.frequencies, resamples=25).numbers["AP"]
    assert again == interval  # the seed decides
