"""Recognition rates: small cases by hand, identities, and the metric on data samples."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData

from rar_mmdet.errors import AnnotationFileError, DetectionError, MetricConfigError, VocabularyError
from rar_mmdet.evaluation import RecognitionMetric
from rar_mmdet.files.vocabulary import vocabulary_hash
from rar_mmdet.scoring.recognition import ImageObjects, judge_regions, match_truth, summarise
from rar_mmdet.structures import RankStatus

CLASSES = ["cat", "dog", "fox"]
BOXES = np.array([[0, 0, 10, 10], [20, 20, 60, 60], [0, 0, 10, 10], [100, 100, 300, 300]], float)
LABELS = np.array([0, 1, 2, 2])
AREAS = np.array([100.0, 1600.0, 100.0, 40000.0])
OBJECTS = ImageObjects(BOXES, LABELS, AREAS)
FREQUENCIES = ["f", "c", "r"]


def recognition(**changes: Any) -> dict[str, np.ndarray]:
    """Objects 0-2 have a region each, in their order; the ranker mends object 1, spoils 0 and is not asked about 2."""
    fields = {
        "bboxes": BOXES[:3].astype(np.float32),
        "shortlist_ids": np.array([[0, 1, 2], [2, 1, 0], [1, 0, 2]]),
        "ranked_ids": np.array([[1, 0], [1, 2], [1, 0]]),
        "status": np.array([RankStatus.OK, RankStatus.PARTIAL, RankStatus.SKIPPED]),
    }
    return fields | changes


def test_rates_by_hand() -> None:
    outcomes = judge_regions(OBJECTS, recognition(), iou_thr=0.5)
    report = summarise(outcomes, CLASSES, FREQUENCIES, top=(1, 2), recall_at=(1, 3))
    numbers = report.numbers
    assert (numbers["objects"], numbers["matched"]) == (4, 0.75)
    third = pytest.approx(1 / 3)
    assert {k: numbers[k] for k in ("top1", "retrieval_top1", "asked", "changed", "improved", "harmed")} == {
        "top1": third,  # object 1
        "retrieval_top1": third,  # object 0
        "asked": pytest.approx(2 / 3),
        "changed": pytest.approx(2 / 3),
        "improved": third,
        "harmed": third,
    }
    assert numbers["recall@1"] == third
    assert numbers["recall@3"] == 1
    assert numbers["top2"] == pytest.approx(2 / 3)
    assert (numbers["top1_c"], numbers["top1_f"], numbers["top1_r"]) == (1, 0, 0)
    assert (numbers["top1_s"], numbers["top1_m"], numbers["top1_l"]) == (0, 1, -1)
    assert [row["name"] for row in report.per_class] == CLASSES
    assert report.per_class[0] | {"top1": 0.0, "harmed": 1.0, "objects": 1} == report.per_class[0]
    assert [(c["annotated"], c["named"], c["count"]) for c in report.confusions] == [
        ("cat", "dog", 1),
        ("fox", "dog", 1),
    ]


def test_identity_ranker_changes_nothing() -> None:
    same = recognition(ranked_ids=recognition()["shortlist_ids"][:, :2])
    numbers = summarise(judge_regions(OBJECTS, same, 0.5), CLASSES, None).numbers
    assert numbers["changed"] == numbers["improved"] == numbers["harmed"] == 0
    assert numbers["top1"] == numbers["retrieval_top1"]
    assert "top1_r" not in numbers


@pytest.mark.parametrize("seed", range(5))
def test_shares_explain_the_gain_and_recall_bounds_the_ranker(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, categories, k = 200, 30, 5
    corner = rng.uniform(0, 5000, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 200, (n, 2))], axis=1)
    shortlist = np.stack([rng.permutation(categories)[:20] for _ in range(n)])
    ranked = np.stack([rng.permutation(row[:k]) for row in shortlist])
    fields = {"bboxes": boxes, "shortlist_ids": shortlist, "ranked_ids": ranked, "status": np.zeros(n, int)}
    labels = rng.integers(0, categories, n)
    numbers = summarise(
        judge_regions(ImageObjects(boxes, labels, np.ones(n)), fields, 0.5), [str(i) for i in range(categories)], None
    ).numbers
    assert numbers["top1"] - numbers["retrieval_top1"] == pytest.approx(numbers["improved"] - numbers["harmed"])
    assert numbers["top1"] <= numbers["recall@5"]
    assert numbers["top5"] == numbers["recall@5"]  # K candidates stay the first K
    assert numbers["retrieval_top1"] == numbers["recall@1"] <= numbers["recall@5"] <= numbers["recall@20"]


def test_equal_boxes_pair_in_their_order_and_regions_serve_once() -> None:
    twice = np.concatenate([BOXES[:1], BOXES[:1], BOXES[:1]])
    fields = recognition(bboxes=np.concatenate([BOXES[:1], BOXES[:1]]))
    fields = {key: value[:2] for key, value in fields.items()}
    outcomes = judge_regions(ImageObjects(twice, np.array([0, 2, 2]), np.ones(3)), fields, 0.5)
    assert outcomes.retrieved.tolist() == [0, 2, -1]


def test_order_of_regions_does_not_matter() -> None:
    order = [1, 2, 0]
    shuffled = {key: value[order] for key, value in recognition().items()}
    distinct = BOXES + np.arange(4)[:, None] * 1000
    plain = recognition(bboxes=distinct[:3])
    shuffled["bboxes"] = distinct[:3][order]
    one = judge_regions(ImageObjects(distinct, LABELS, AREAS), plain, 0.5)
    other = judge_regions(ImageObjects(distinct, LABELS, AREAS), shuffled, 0.5)
    np.testing.assert_array_equal(one.final_rank, other.final_rank)


def test_no_region_and_no_object() -> None:
    none = {key: value[:0] for key, value in recognition().items()}
    numbers = summarise(judge_regions(OBJECTS, none, 0.5), CLASSES, FREQUENCIES).numbers
    assert (numbers["matched"], numbers["top1"]) == (0, -1)
    empty = judge_regions(ImageObjects(BOXES[:0], LABELS[:0], AREAS[:0]), recognition(), 0.5)
    assert summarise(empty, CLASSES, FREQUENCIES).numbers["top1"] == -1


def sample(img_id: int = 7, **fields: Any) -> dict[str, Any]:
    data = {key: torch.tensor(value) for key, value in recognition().items()}
    instances = [{"bbox": b.tolist(), "bbox_label": int(i)} for b, i in zip(BOXES, LABELS, strict=True)]
    return {"img_id": img_id, "recognition": InstanceData(**data), "instances": instances} | fields


def annotation_file(tmp_path: Path) -> str:
    boxes = np.concatenate([BOXES[:, :2], BOXES[:, 2:] - BOXES[:, :2]], axis=1).tolist()
    annotations = [
        {"id": i, "image_id": 7, "category_id": 10 + int(c), "bbox": box, "area": area}
        for i, (box, c, area) in enumerate(zip(boxes, LABELS, AREAS.tolist(), strict=True))
    ]
    categories = [
        {"id": 10 + i, "name": n, "frequency": f} for i, (n, f) in enumerate(zip(CLASSES, FREQUENCIES, strict=True))
    ]
    path = tmp_path / "ann.json"
    path.write_text(json.dumps({"images": [{"id": 7}], "annotations": annotations, "categories": categories}))
    return str(path)


def test_metric_from_samples_and_from_a_file(tmp_path: Path) -> None:
    metric = RecognitionMetric()
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, [sample()])
    from_samples = metric.evaluate(1)
    prefix = tmp_path / "out" / "run"
    metric = RecognitionMetric(annotation_file(tmp_path), outfile_prefix=str(prefix))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, [sample(), sample()])  # the second is a distributed run's padding
    from_file = metric.evaluate(2)
    assert from_samples.items() <= from_file.items()
    assert from_file["recognition/top1_c"] == 1
    saved = json.loads(Path(f"{prefix}.recognition.json").read_text())
    assert saved["numbers"] == {key.removeprefix("recognition/"): value for key, value in from_file.items()}
    with open(f"{prefix}.classes.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == CLASSES
    with open(f"{prefix}.confusions.csv", newline="") as file:
        assert next(csv.DictReader(file))["named"] == "dog"


def test_emitted_names_are_rated_where_detections_know_their_region() -> None:
    pred = InstanceData(
        region_ids=torch.tensor([1, 0, 0, 2]),
        labels=torch.tensor([1, 2, 0, 0]),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.1]),
    )
    metric = RecognitionMetric(top=(1, 2))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, [sample(pred_instances=pred)])
    numbers = metric.evaluate(1)
    assert numbers["recognition/emitted_top1"] == pytest.approx(1 / 3)  # region 1
    assert numbers["recognition/emitted_top2"] == pytest.approx(2 / 3)  # region 0 names it second


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(MetricConfigError, match="iou_thr=0"):
        RecognitionMetric(iou_thr=0)
    with pytest.raises(AnnotationFileError, match="none.json does not exist"):
        RecognitionMetric("none.json")
    metric = RecognitionMetric()
    metric.dataset_meta = {"classes": CLASSES}
    with pytest.raises(MetricConfigError, match="has no `recognition`"):
        metric.process({}, [sample(recognition=None)])
    with pytest.raises(MetricConfigError, match="lacks .'shortlist_ids'"):
        metric.process({}, [sample(recognition={"bboxes": 1, "ranked_ids": 2, "status": 3})])
    with pytest.raises(MetricConfigError, match="give ann_file"):
        metric.process({}, [{"img_id": 1, "recognition": sample()["recognition"]}])
    metric = RecognitionMetric(annotation_file(tmp_path))
    metric.dataset_meta = {"classes": CLASSES}
    with pytest.raises(AnnotationFileError, match="image 8 is not in"):
        metric.process({}, [sample(img_id=8)])
    metric = RecognitionMetric(annotation_file(tmp_path))
    metric.dataset_meta = {"classes": [*CLASSES, "yak"]}
    with pytest.raises(VocabularyError, match="1 of 4 classes are not among the 3 categories .* 'yak'"):
        metric.process({}, [sample()])


def test_truth_of_a_region_is_the_pairing_that_is_rated() -> None:
    """Also where two regions cover one object, and where one covers none."""
    regions = np.array(
        [[100, 100, 300, 290], [0, 0, 10, 10], [0, 0, 10, 10], [500, 500, 510, 510], [0, 0, 9, 10]], float
    )
    labels = match_truth(regions, BOXES, LABELS)
    assert labels.dtype == np.int64
    assert labels.tolist() == [2, 0, 2, -1, -1]  # equal boxes in their order; the fifth finds its objects taken
    assert match_truth(regions, BOXES, LABELS, iou=0.96).tolist() == [-1, 0, 2, -1, -1]
    fields = {
        "bboxes": regions,
        "shortlist_ids": labels[:, None],
        "ranked_ids": labels[:, None],
        "status": np.zeros(5, int),
    }
    outcomes = judge_regions(OBJECTS, fields, 0.5)
    np.testing.assert_array_equal(outcomes.retrieved[outcomes.matched], LABELS[outcomes.matched])


def test_no_region_or_no_object_has_no_truth() -> None:
    assert match_truth(BOXES, BOXES[:0], LABELS[:0]).tolist() == [-1] * 4
    assert match_truth(np.zeros((0, 4)), BOXES, LABELS).shape == (0,)


def test_labels_of_a_file_follow_the_classes_in_any_order(tmp_path: Path) -> None:
    for classes in (CLASSES[::-1], ["fox", "cat", "dog"], ["fox", "cat"]):
        order = [CLASSES.index(name) for name in classes]
        new_label = {old: new for new, old in enumerate(order)}
        ids = np.vectorize(lambda old, map=new_label: map.get(old, 0))  # "fox" stands for what is left out
        fields = {key: torch.tensor(value) for key, value in recognition().items()}
        for key in ("shortlist_ids", "ranked_ids"):
            fields[key] = torch.tensor(ids(recognition()[key]))
        metric = RecognitionMetric(annotation_file(tmp_path))
        metric.dataset_meta = {"classes": classes}
        metric.process({}, [sample(recognition=InstanceData(**fields))])
        numbers = metric.evaluate(1)
        assert numbers["recognition/objects"] == np.isin(LABELS, order).sum()
        if len(classes) == 3:
            assert numbers["recognition/retrieval_top1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"instances": []}, "have no annotated object", id="no-object"),
        pytest.param({}, "no region covers any of the 4 annotated objects", id="elsewhere"),
    ],
)
def test_nothing_to_rate_is_said(change: dict, message: str) -> None:
    found = sample(**change)
    found["recognition"].bboxes += 5000
    metric = RecognitionMetric()
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, [found])
    handler = logging.StreamHandler(text := io.StringIO())
    MMLogger.get_current_instance().addHandler(handler)
    metric.evaluate(1)
    MMLogger.get_current_instance().removeHandler(handler)
    assert message in text.getvalue()


def test_labels_beyond_the_classes_are_refused() -> None:
    metric = RecognitionMetric()
    metric.dataset_meta = {"classes": CLASSES[:2]}
    with pytest.raises(DetectionError, match="image 7: shortlist_ids holds label 2, but the dataset has 2 classes"):
        metric.process({}, [sample()])


def test_vocabulary_of_another_list_is_refused(tmp_path: Path) -> None:
    fields = sample()["recognition"]
    fields.set_metainfo({"vocabulary": vocabulary_hash(CLASSES)})
    metric = RecognitionMetric(annotation_file(tmp_path))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, [sample(recognition=fields)])
    metric.dataset_meta = {"classes": CLASSES[::-1]}
    with pytest.raises(VocabularyError, match="in another order, than the dataset's 3 classes .'fox', 'dog', 'cat'"):
        metric.process({}, [sample(recognition=fields)])
    metric.dataset_meta = {}
    with pytest.raises(MetricConfigError, match="metainfo has no `classes`"):
        metric.process({}, [sample(recognition=fields)])


def test_an_empty_shard_on_the_first_process_keeps_the_frequency_bins(tmp_path: Path) -> None:
    """The process that summarises may itself have seen no image; results of the others come to it as they are."""
    other = RecognitionMetric(annotation_file(tmp_path))
    other.dataset_meta = {"classes": CLASSES}
    other.process({}, [sample()])
    first = RecognitionMetric(annotation_file(tmp_path))
    first.dataset_meta = {"classes": CLASSES}
    assert first.compute_metrics(other.results)["top1_c"] == 1


def test_crowds_and_ignored_objects_are_no_objects(tmp_path: Path) -> None:
    path = Path(annotation_file(tmp_path))
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["ignore"] = 1
    content["annotations"][2].pop("area")
    path.write_text(json.dumps(content))
    metric = RecognitionMetric(str(path))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, [sample()])
    assert metric.evaluate(1)["recognition/objects"] == 2
