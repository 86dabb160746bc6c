"""Error types and their cost: equal to tidecv, and by hand on worlds with one error of one kind."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from scoring_worlds import perfect_world

from rar_mmdet.scoring.annotations import Detections, GroundTruth
from rar_mmdet.scoring.command import main as score
from rar_mmdet.scoring.errors import ERRORS, find_errors
from rar_mmdet.scoring.settings import COCO, LVIS, V3DET

SHORT = {"cls": "Cls", "loc": "Loc", "both": "Both", "dupe": "Dupe", "bkg": "Bkg", "miss": "Miss"}


def detections_of(records):
    return Detections(
        np.array([r["image_id"] for r in records], np.int64),
        np.array([r["category_id"] for r in records], np.int64),
        np.array([r["bbox"] for r in records], float).reshape(-1, 4),
        np.array([r["score"] for r in records], float),
    )


def tide_of(dataset, records, max_dets):
    """tidecv's numbers, of 1; without its figures and downloads, which need packages that nothing else here does."""
    for unused in ("tidecv.plotting", "tidecv.datasets"):
        sys.modules.setdefault(unused, types.ModuleType(unused)).Plotter = object
    tidecv = pytest.importorskip("tidecv", reason="tidecv is not installed: pip install --no-deps tidecv")
    truth, found = tidecv.Data("truth", max_dets), tidecv.Data("found", max_dets)
    for image in dataset["images"]:
        truth.add_image(image["id"], image["file_name"])
    for category in dataset["categories"]:
        truth.add_class(category["id"], category["name"])
    for a in dataset["annotations"]:
        add = truth.add_ignore_region if a["iscrowd"] else truth.add_ground_truth
        add(a["image_id"], a["category_id"], a["bbox"])
    for r in records:
        found.add_detection(r["image_id"], r["category_id"], r["score"], r["bbox"])
    tide = tidecv.TIDE()
    run = tide.evaluate(truth, found, mode=tidecv.TIDE.BOX)
    main, special = tide.get_main_errors()["found"], tide.get_special_errors()["found"]
    gains = {name: main[short] / 100 for name, short in SHORT.items()}
    gains |= {"fp": special["FalsePos"] / 100, "fn": special["FalseNeg"] / 100}
    counts = {error.short_name: count for error, count in run.count_errors().items()}
    return run.ap / 100, gains, {name: counts[short] for name, short in SHORT.items()}


def random_world(seed, *, images=12, classes=6, crowds=0.1, decimals=None, empty=0.2):
    """Objects, and detections that are moved, misnamed, repeated and made up."""
    rng = np.random.default_rng(seed)
    world = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 300, "width": 300} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": f"name {k}"} for k in range(1, classes + 1)],
        "annotations": [],
    }
    records = []

    def record(image, category, box):
        score = rng.uniform()
        score = score if decimals is None else round(score, decimals)
        records.append({"image_id": image, "category_id": int(category), "bbox": box, "score": score})

    for image in range(1, images + 1):
        for _ in range(0 if rng.uniform() < empty else rng.integers(1, 7)):
            box = [*rng.uniform(0, 200, 2), *rng.uniform(20, 90, 2)]
            category = int(rng.integers(1, classes + 1))
            crowd = int(rng.uniform() < crowds)
            number = len(world["annotations"]) + 1
            world["annotations"].append(
                {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd,
                 "area": box[2] * box[3]}
            )  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                moved = [*(np.array(box[:2]) + rng.normal(0, 12, 2)), *(np.array(box[2:]) * rng.uniform(0.6, 1.5, 2))]
                record(image, category if rng.uniform() < 0.6 else rng.integers(1, classes + 1), moved)
        for _ in range(rng.integers(0, 4)):
            record(image, rng.integers(1, classes + 1), [*rng.uniform(0, 200, 2), *rng.uniform(20, 90, 2)])
    return world, records


def report_of(world, records, protocol=COCO):
    truth = GroundTruth.from_dataset(world, federated=protocol.federated)
    return find_errors(truth, detections_of(records), protocol)


@pytest.mark.parametrize("seed", range(25))
def test_equal_to_tidecv(seed):
    world, records = random_world(seed, decimals=1 if seed % 5 == 4 else None, classes=2 + seed % 9)
    found = report_of(world, records)
    ap, gains, counts = tide_of(world, records, 100)
    assert found.average_precision == pytest.approx(ap, abs=1e-9)
    assert found.gains == pytest.approx(gains, abs=1e-9)
    assert found.counts == counts


def test_equal_to_tidecv_beyond_the_limit_of_an_image():
    world, records = random_world(3, images=2, empty=0.0)
    rng = np.random.default_rng(0)
    more = [records[i] | {"score": rng.uniform()} for i in rng.integers(0, len(records), 300)]
    found = report_of(world, records + more)
    ap, gains, counts = tide_of(world, records + more, 100)
    assert sum(found.counts[name] for name in ERRORS[:5]) + (found.kinds == 0).sum() == 200
    assert found.average_precision == pytest.approx(ap, abs=1e-9)
    assert found.gains == pytest.approx(gains, abs=1e-9)
    assert found.counts == counts


def spoiled(kind):
    """The perfect world with the first detection (score 0.9, category 1) spoiled in one way."""
    world, records = perfect_world()
    x, y, w, h = records[0]["bbox"]
    if kind == "cls":
        records[0]["category_id"] = 2
    elif kind == "loc":
        records[0]["bbox"] = [x, y, 0.4 * w, h]  # IoU 0.4
    elif kind == "both":
        records[0] |= {"category_id": 2, "bbox": [x, y, 0.4 * w, h]}
    elif kind == "dupe":
        records.append(records[0] | {"score": 0.85})
    elif kind == "bkg":
        records.append(records[0] | {"bbox": [160, 70, 30, 20], "score": 0.99})
    elif kind == "miss":
        del records[0]
    return world, records


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("protocol", [COCO, LVIS, V3DET], ids=lambda p: p.name)
def test_one_error_of_one_kind(kind, protocol):
    world, records = spoiled(kind)
    found = report_of(world, records, protocol)
    missed = {"both": 1}.get(kind, 0)  # nothing repairs an object whose only box is wrong in two ways
    assert found.counts == {name: int(name == kind) for name in ERRORS} | {"miss": missed + (kind == "miss")}
    assert found.average_precision < 1
    costs = {name for name, gain in found.gains.items() if name in ERRORS and gain > 1e-12}
    if kind == "both":
        assert costs == {"both", "miss"}  # a false positive of one category, an object of the other
    else:
        assert costs == {kind}
        assert found.average_precision + found.gains[kind] == pytest.approx(1)
    place = 0 if kind in ("cls", "loc", "both") else len(records) - 1
    if kind != "miss":
        assert found.kinds[place] == ERRORS.index(kind) + 1
        assert (np.delete(found.kinds, place) == 0).all()


def test_gains_by_hand():
    """One class, two objects: a background box above the only hit, at recall 1/2."""
    world, records = perfect_world()
    world["annotations"] = [a for a in world["annotations"] if a["category_id"] == 1][:2]
    world["categories"] = world["categories"][:1]
    records = [records[0] | {"score": 0.5}, records[0] | {"bbox": [160, 70, 30, 20], "score": 0.9}]
    found = report_of(world, records)
    recalls_up_to_half = 51 / 101
    assert found.average_precision == pytest.approx(0.5 * recalls_up_to_half)
    assert found.gains["bkg"] == found.gains["fp"] == pytest.approx(0.5 * recalls_up_to_half)
    assert found.gains["miss"] == found.gains["fn"] == pytest.approx(0.5 - 0.5 * recalls_up_to_half)
    assert found.gains["cls"] == found.gains["loc"] == found.gains["both"] == found.gains["dupe"] == 0


def test_order_of_files_changes_nothing():
    world, records = random_world(7, crowds=0.0)
    rng = np.random.default_rng(1)
    found = report_of(world, records)
    shuffled = world | {key: [world[key][i] for i in rng.permutation(len(world[key]))] for key in world}
    order = rng.permutation(len(records))
    other = report_of(shuffled, [records[i] for i in order])
    assert other.gains == pytest.approx(found.gains, abs=1e-12)
    assert other.kinds.tolist() == found.kinds[order].tolist()


def test_federated_rules_are_kept():
    world, records = perfect_world()
    world["images"][0] |= {"neg_category_ids": []}
    world["annotations"] = [a for a in world["annotations"] if (a["image_id"], a["category_id"]) != (1, 3)]
    # Category 3 is neither annotated nor excluded in photo 1: its detection there is no error of the background ...
    found = report_of(world, records, LVIS)
    assert found.average_precision == 1
    assert all(gain == 0 for gain in found.gains.values())
    # ... and a spare one of category 1 there is one, unless its annotation is said to be partial.
    spare = records[0] | {"bbox": [160, 70, 30, 20], "score": 0.99}
    assert report_of(world, [*records, spare], LVIS).gains["bkg"] > 0
    world["images"][0]["not_exhaustive_category_ids"] = [1]
    assert all(gain == 0 for gain in report_of(world, [*records, spare], LVIS).gains.values())
    # A category nobody annotated has no average precision in LVIS; tidecv counts 0 for it.
    world["categories"].append({"id": 9, "name": "owl", "frequency": "r"})
    world["images"][1]["neg_category_ids"].append(9)
    owl = records[4] | {"category_id": 9, "bbox": [160, 70, 30, 20]}
    assert report_of(world, [*records, owl], LVIS).average_precision == 1
    assert report_of(world, [*records, owl], COCO).average_precision < 1


def test_nothing_found_and_nothing_to_find():
    world, records = perfect_world()
    nothing = find_errors(GroundTruth.from_dataset(world, federated=False), Detections.empty(), COCO)
    assert nothing.average_precision == 0
    assert nothing.counts == dict.fromkeys(ERRORS, 0) | {"miss": 9}
    empty = world | {"annotations": []}
    found = report_of(empty, records)
    assert found.counts == dict.fromkeys(ERRORS, 0) | {"bkg": 9}
    assert found.average_precision == 0
    assert replace(found, average_precision=0.0).named()["bbox_dAP_miss"] == 0


def test_the_command_prints_and_writes_them(tmp_path, capsys):
    world, records = random_world(2)
    for name, content in (("truth.json", world), ("results.json", records)):
        (tmp_path / name).write_text(json.dumps(content))
    line = [str(tmp_path / "results.json"), str(tmp_path / "truth.json"), "--protocol", "coco", "--errors"]
    assert score([*line, "--json", str(tmp_path / "numbers.json")]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    found = report_of(world, records)
    assert {key: numbers[key] for key in found.named()} == found.named()
    shown = capsys.readouterr().out
    assert f"AP50 ({found.average_precision:.4f}) would gain" in shown
    assert f"bkg   {found.counts['bkg']:>9} {found.gains['bkg']:+8.4f}  nothing is there" in shown
    with pytest.raises(SystemExit):
        score([*line, "--metric", "segm"])
    assert "--errors tells errors of boxes apart: leave --metric segm out" in capsys.readouterr().err
