"""The demo world is valid LVIS v1, its counts are real, its splits share nothing, and a seed fixes every byte."""

import hashlib
import json
from collections import Counter, defaultdict

import cv2
import make_world as script
import numpy as np
import pytest
from make_world import is_complete, lay_out_split, make_splits, make_world
from world import CLASS_NAMES, NUM_CLASSES, rare_classes

SPLITS = ("train", "calib", "test")


def read(world, split):
    return json.loads((world / "annotations" / f"lvis_demo_{split}.json").read_text())


def photo_path(world, image):
    return world / image["coco_url"].removeprefix("http://images.cocodataset.org/")


def digest(world):
    files = sorted(path for path in world.rglob("*") if path.is_file())
    return {str(path.relative_to(world)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("split", SPLITS)
def test_annotations_are_lvis_v1(tiny_world, split):
    data = read(tiny_world, split)
    assert [c["id"] for c in data["categories"]] == list(range(1, NUM_CLASSES + 1))
    for category, name in zip(data["categories"], CLASS_NAMES, strict=True):
        assert category["name"] == category["synonyms"][0] == name.replace(" ", "_")
        assert {"synset", "def", "image_count", "instance_count", "frequency"} <= set(category)
    images = {image["id"]: image for image in data["images"]}
    assert len({a["id"] for a in data["annotations"]}) == len(data["annotations"])
    present = defaultdict(set)
    for annotation in data["annotations"]:
        image, (x, y, w, h) = images[annotation["image_id"]], annotation["bbox"]
        present[image["id"]].add(annotation["category_id"])
        assert 0 <= x < x + w <= image["width"]
        assert 0 <= y < y + h <= image["height"]
        assert annotation["area"] == w * h
        for polygon in annotation["segmentation"]:
            assert len(polygon) >= 6
            xs, ys = np.array(polygon).reshape(-1, 2).T
            assert x <= xs.min() <= xs.max() < x + w
            assert y <= ys.min() <= ys.max() < y + h
    for image in images.values():
        assert cv2.imread(str(photo_path(tiny_world, image))).shape == (image["height"], image["width"], 3)
        assert present[image["id"]].isdisjoint(image["neg_category_ids"])
        assert set(image["not_exhaustive_category_ids"]) <= present[image["id"]]
        assert len(image["neg_category_ids"]) >= 15
        assert 3 <= len(present[image["id"]]) <= 12


def test_lvis_api_reads_it(tiny_world):
    lvis = pytest.importorskip("lvis")
    api = lvis.LVIS(str(tiny_world / "annotations" / "lvis_demo_test.json"))
    assert len(api.get_img_ids()) == 5
    assert api.ann_to_mask(api.anns[api.get_ann_ids()[0]]).sum() > 50


def test_frequency_follows_from_image_counts_of_the_train_split(tiny_world):
    data = read(tiny_world, "train")
    pairs = {(a["image_id"], a["category_id"]) for a in data["annotations"]}
    counts = Counter(category for _, category in pairs)
    instances = Counter(a["category_id"] for a in data["annotations"])
    for category in data["categories"]:
        photos = category["image_count"]
        assert photos == counts[category["id"]]
        assert category["instance_count"] == instances[category["id"]]
        assert category["frequency"] == ("r" if photos <= 2 else "c" if photos <= 6 else "f")
    for split in ("calib", "test"):
        assert read(tiny_world, split)["categories"] == data["categories"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rare_categories_are_those_the_models_never_saw_for_every_seed(seed):
    photos = lay_out_split(seed, make_splits((400, 120, 280))[0])
    counts = np.bincount([c for things in photos for c in {t.class_index for t in things}], minlength=NUM_CLASSES)
    assert counts.min() >= 1
    assert set(np.flatnonzero(counts <= 2)) == set(rare_classes())


def test_test_split_covers_the_vocabulary_and_all_sizes():
    photos = lay_out_split(0, make_splits((400, 120, 280))[2])
    assert len({thing.class_index for things in photos for thing in things}) > 590
    sides = np.array([thing.side for things in photos for thing in things])
    small, large = (sides < 32).mean(), (sides > 96).mean()
    assert 0.3 < small < 0.5
    assert 0.1 < large < 0.3
    assert {len(things) for things in photos} <= set(range(3, 13))


def test_splits_share_no_photo(tiny_world):
    urls = [image["coco_url"] for split in SPLITS for image in read(tiny_world, split)["images"]]
    assert len(set(urls)) == len(urls) == 19
    ids = [image["id"] for split in SPLITS for image in read(tiny_world, split)["images"]]
    assert len(set(ids)) == 19
    photos = [hashlib.sha256(path.read_bytes()).hexdigest() for path in tiny_world.glob("*2017/*.jpg")]
    assert len(set(photos)) == len(photos) == 19


def test_a_seed_fixes_every_byte_whatever_the_workers(tiny_world, tmp_path):
    assert make_world(tmp_path / "same", seed=3, photos=(10, 4, 5), workers=2)
    assert digest(tmp_path / "same") == digest(tiny_world)
    assert make_world(tmp_path / "other", seed=4, photos=(10, 4, 5), workers=1)
    assert not set(digest(tmp_path / "other").values()) & set(digest(tiny_world).values())


def test_nothing_is_done_for_a_world_that_is_there(tiny_world):
    before = {path: path.stat().st_mtime_ns for path in tiny_world.rglob("*")}
    assert not make_world(tiny_world, seed=3, photos=(10, 4, 5))
    assert before == {path: path.stat().st_mtime_ns for path in tiny_world.rglob("*")}


def test_a_damaged_or_older_world_is_made_anew(tmp_path):
    out = tmp_path / "demo"
    make_world(out, seed=5, photos=(1, 1, 2), workers=1)
    whole = digest(out)
    (out / "annotations" / "lvis_demo_test.json").write_text("{}")
    assert make_world(out, seed=5, photos=(1, 1, 2), workers=1)
    assert digest(out) == whole
    next(out.glob("val2017/*.jpg")).unlink()
    assert make_world(out, seed=5, photos=(1, 1, 2), workers=1)
    assert digest(out) == whole
    assert make_world(out, seed=6, photos=(1, 1, 2), workers=1)
    wanted = {"world": "rar_mmdet demo", "version": 1, "seed": 6, "photos": {"train": 1, "calib": 1, "test": 2}}
    assert is_complete(out, wanted)


def test_a_run_that_dies_leaves_nothing_behind(tmp_path, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "describe_split", die)
    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path / "demo", seed=5, photos=(1, 1, 1), workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds no demo world: give another folder with --out"):
        make_world(tmp_path, seed=0, photos=(1, 1, 1))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_command_line_refuses_nonsense(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make_world.py", "--photos", "0", "1", "1"])
    with pytest.raises(SystemExit):
        script.main()
    assert "must be at least 1" in capsys.readouterr().err
