"""Published sets on miniature trees of every layout; broken ones are refused by name."""

import hashlib
import json
import pickle
import sys
from pathlib import Path

import pytest

from rar_mmdet.classification import CATALOGUE, Example, PhotoDataset, read_dataset
from rar_mmdet.errors import DatasetError, HostError, MissingAssetError

COOP = sorted(name for name, spec in CATALOGUE.items() if spec.layout == "coop")


def read(name, root):
    return read_dataset(name, root, check_counts=False)


def test_the_nine_splits_and_the_six_other_sets_are_known():
    assert len(COOP) == 9
    assert len(CATALOGUE) == 15
    # Published numbers, written out once more from the table they were taken from.
    numbers = {
        "caltech101": (100, 4128, 1649, 2465),
        "oxford_pets": (37, 2944, 736, 3669),
        "stanford_cars": (196, 6509, 1635, 8041),
        "flowers102": (102, 4093, 1633, 2463),
        "food101": (101, 50500, 20200, 30300),
        "fgvc_aircraft": (100, 3334, 3333, 3333),
        "sun397": (397, 15880, 3970, 19850),
        "dtd": (47, 2820, 1128, 1692),
        "eurosat": (10, 13500, 5400, 8100),
        "ucf101": (101, 7639, 1898, 3783),
        "imagenet": (1000, None, 0, 50000),
        "raf_db": (7, 12271, 0, 3068),
        "cub200": (200, 5994, 0, 5794),
        "stanford_dogs": (120, 12000, 0, 8580),
        "flowers102_official": (102, 1020, 1020, 6149),
    }
    assert {name: (spec.classes, *spec.counts) for name, spec in CATALOGUE.items()} == numbers
    for spec in CATALOGUE.values():
        assert spec.template.count("{}") == 1
        assert spec.template_source


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_layout_is_read(name, layouts, tmp_path):
    dataset = read(name, layouts.write(name, tmp_path))
    assert dataset.name == name
    assert dataset.test
    assert dataset.train
    for part in (dataset.train, dataset.val, dataset.test):
        for example in part:
            assert example.read().shape == (6, 8, 3)
            assert not Path(example.id).is_absolute()
            assert example.path.replace("_aligned", "").endswith(example.id)
            assert example.prompt_name == dataset.prompt_names[example.label]
            assert example.display_name == dataset.display_names[example.label]
            assert "_" not in example.prompt_name
    assert len(dataset.split_sha256) == 64
    assert dataset.describe()["counts_checked"] is False


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_other_numbers_than_the_published_are_refused(name, layouts, tmp_path):
    with pytest.raises(DatasetError, match=rf"{name}: .*\d instead of .*check_counts=False"):
        read_dataset(name, layouts.write(name, tmp_path))


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_a_missing_split_file_is_refused_with_its_place_and_nothing_is_written(name, layouts, tmp_path):
    layouts.write(name, tmp_path)
    spec = CATALOGUE[name]
    for file in spec.split_files:
        path = tmp_path / spec.folder / file
        kept = path.read_bytes()
        path.unlink()
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(MissingAssetError, match=f"must lie at {path}.*never split anew"):
            read(name, tmp_path)
        assert sorted(tmp_path.rglob("*")) == before
        path.write_bytes(kept)
    read(name, tmp_path)


@pytest.mark.parametrize("name", sorted(CATALOGUE.keys() - {"imagenet"}))
def test_missing_photos_are_counted(name, layouts, tmp_path):
    first, second = read(name, layouts.write(name, tmp_path)).train[:2]
    Path(first.path).unlink()
    Path(second.path).unlink()
    with pytest.raises(MissingAssetError, match=rf"2 of \d+ photos are not there, the first is {first.path}"):
        read(name, tmp_path)


def test_the_counts_are_checked_and_results_say_so(layouts, tmp_path, monkeypatch):
    from dataclasses import replace

    layouts.write("dtd", tmp_path)
    monkeypatch.setitem(CATALOGUE, "dtd", replace(CATALOGUE["dtd"], classes=3, counts=(9, 3, 3)))
    described = read_dataset("dtd", tmp_path).describe()
    assert described["counts_checked"] is True
    assert described["photos"] == {"train": 9, "val": 3, "test": 3}
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    assert described["split_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert described["templates"] == ["{} texture."]
    assert "CoOp" in described["template_source"]
    monkeypatch.setitem(CATALOGUE, "dtd", replace(CATALOGUE["dtd"], classes=3, counts=(9, 3, 4)))
    with pytest.raises(DatasetError, match="test 3 instead of 4"):
        read_dataset("dtd", tmp_path)


def test_names_for_prompts_and_for_people(layouts, tmp_path):
    names = {
        name: list(zip(dataset.prompt_names, dataset.display_names, strict=True))
        for name in ("oxford_pets", "sun397", "stanford_cars", "food101", "cub200", "stanford_dogs", "raf_db")
        if (dataset := read(name, layouts.write(name, tmp_path)))
    }
    assert names["oxford_pets"][0] == ("american bulldog", "American Bulldog")
    assert names["sun397"][1] == ("outdoor apartment building", "apartment building outdoor")
    assert names["stanford_cars"][2] == ("2012 Ram C/V Cargo Van Minivan",) * 2
    assert names["food101"][2] == ('third\'s, "odd" one',) * 2
    assert names["cub200"][0][0] == "Black footed Albatross"
    assert names["stanford_dogs"][1][0] == "Japanese spaniel"
    assert [prompt for prompt, _ in names["raf_db"]] == [
        "surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral",
    ]  # fmt: skip


def test_imagenet_has_labels_by_folder_and_two_classes_of_one_name(layouts, tmp_path):
    dataset = read("imagenet", layouts.write("imagenet", tmp_path))
    assert dataset.prompt_names == ("tench", "missile", "missile")
    assert [example.label for example in dataset.test] == [0, 1, 2]
    assert dataset.test[0].id == "val/n01440764/ILSVRC2012_val_n01440764.JPEG"
    before = dataset.split_sha256
    layouts.photo(tmp_path / "imagenet/images/val/n01440764/more.JPEG")
    assert read("imagenet", tmp_path).split_sha256 != before
    layouts.photo(tmp_path / "imagenet/images/val/n09999999/odd.JPEG")
    with pytest.raises(DatasetError, match="no name for the folder val/n09999999"):
        read("imagenet", tmp_path)


def test_both_splits_of_flowers_lie_in_one_folder(layouts, tmp_path):
    layouts.write("flowers102", tmp_path)
    layouts.write("flowers102_official", tmp_path)
    official, coop = read("flowers102_official", tmp_path), read("flowers102", tmp_path)
    assert [(e.id, e.label, e.prompt_name) for e in official.test] == [
        ("image_00003.jpg", 2, "moon"),
        ("image_00005.jpg", 1, "hard-leaved pocket orchid"),
    ]
    assert [e.label for e in official.train] == [1, 0]
    assert official.split_sha256 != coop.split_sha256


def test_labels_of_the_other_layouts(layouts, tmp_path):
    for name in ("fgvc_aircraft", "raf_db", "cub200", "stanford_dogs"):
        layouts.write(name, tmp_path)
    aircraft = read("fgvc_aircraft", tmp_path)
    assert [(e.id, e.prompt_name) for e in aircraft.val][:2] == [
        ("0000020.jpg", "727-200"),
        ("0000021.jpg", "707-320"),
    ]
    raf = read("raf_db", tmp_path)
    assert [(e.id, e.prompt_name) for e in raf.train] == [
        ("train_00001.jpg", "sadness"),
        ("train_00002.jpg", "surprise"),
        ("train_00003.jpg", "happiness"),
    ]
    assert raf.test[0].path.endswith("Image/aligned/test_0001_aligned.jpg")
    cub = read("cub200", tmp_path)
    assert [(e.id, e.label) for e in cub.test][1] == ("002.Laysan_Albatross/Laysan_Albatross_1.jpg", 1)
    dogs = read("stanford_dogs", tmp_path)
    assert [(e.id, e.label) for e in dogs.test][2] == ("n02085936-Maltese_dog/n02085936_3.jpg", 2)


def mend(root, change):
    """Change CoOp's split file of DTD."""
    file = root / "dtd" / "split_zhou_DescribableTextures.json"
    content = json.loads(file.read_text())
    changed = change(content)
    file.write_text(json.dumps(content if changed is None else changed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda c: c.pop("val") and None, "no list 'val'", id="no-val"),
        pytest.param(lambda c: [1], "no list 'train'", id="no-record"),
        pytest.param(lambda c: c["test"].append(["x.jpg", 1]), r"test\[3\] = .*expected \[path, label", id="short"),
        pytest.param(lambda c: c["test"].append(["x.jpg", True, "a"]), r"test\[3\]", id="bool-label"),
        pytest.param(lambda c: c["test"].append(["x.jpg", -1, "a"]), r"test\[3\]", id="negative"),
        pytest.param(lambda c: c["test"].append(["../x.jpg", 1, "second thing"]), "leads out of", id="outside"),
        pytest.param(lambda c: c["test"].append(["/x.jpg", 1, "second thing"]), "leads out of", id="absolute"),
        pytest.param(lambda c: c["test"].append(["C:\\x.jpg", 1, "second thing"]), "leads out of", id="drive"),
        pytest.param(lambda c: c["test"].append([3, 1, "second thing"]), "no path of a photo", id="number"),
        pytest.param(lambda c: c["test"].append(["x.jpg", 1, " "]), "no name of a class", id="empty-name"),
        pytest.param(lambda c: c["test"].append(["x.jpg", 1, "other"]), "label 1 is called 'other' here", id="names"),
        pytest.param(lambda c: c["test"].append(["x.jpg", 4, "far"]), "no photo of label 3", id="gap"),
        pytest.param(lambda c: c["test"].append(c["train"][0]), "is in train and in test", id="leak"),
        pytest.param(lambda c: c["test"].append(c["test"][0]), "is twice in test", id="twice"),
        pytest.param(lambda c: c["test"].clear(), "the test part is empty", id="empty"),
    ],
)
def test_damaged_splits_are_refused(change, message, layouts, tmp_path):
    layouts.write("dtd", tmp_path)
    mend(tmp_path, change)
    with pytest.raises(DatasetError, match=message):
        read("dtd", tmp_path)


def test_split_files_that_are_no_json(layouts, tmp_path):
    layouts.write("dtd", tmp_path)
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(DatasetError, match="ends in the middle"):
        read("dtd", tmp_path)
    file.write_bytes(pickle.dumps({"train": []}))
    with pytest.raises(DatasetError, match="is a Python pickle"):
        read("dtd", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("fgvc_aircraft", "fgvc_aircraft/images_variant_val.txt", "0000020 Concorde\n", "'Concorde' of photo 0000020"),
        ("raf_db", "raf-db/EmoLabel/list_patition_label.txt", "train_00001.jpg 8\n", "labels 1 to 7"),
        ("raf_db", "raf-db/EmoLabel/list_patition_label.txt", "valid_00001.jpg 1\n", "expected lines such as"),
        ("cub200", "CUB_200_2011/train_test_split.txt", "1 1\n2 0\n", "photo number 3 is here or in images.txt"),
        ("cub200", "CUB_200_2011/images.txt", "1 a.jpg\n1 b.jpg\n", "a number that is new"),
        ("cub200", "CUB_200_2011/classes.txt", "7 007.Auk\n", "has class 1, which classes.txt lacks"),
        ("stanford_dogs", "stanford_dogs/test_list.mat", "text", "is no MATLAB file"),
        ("flowers102_official", "oxford_flowers/cat_to_name.json", '{"2": "a"}', "no name of class 1"),
        ("flowers102_official", "oxford_flowers/cat_to_name.json", '{"1": "a"}', "has no label in imagelabels.mat"),
        ("imagenet", "imagenet/classnames.txt", "n01440764\n", "is no name of a class"),
    ],
)
def test_damaged_files_of_the_other_layouts(name, file, content, message, layouts, tmp_path):
    layouts.write(name, tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read(name, tmp_path)


def test_mat_files_say_what_to_install(layouts, tmp_path, monkeypatch):
    layouts.write("stanford_dogs", tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(HostError, match=r"train_list\.mat is a MATLAB file.*pip install scipy"):
        read("stanford_dogs", tmp_path)


def test_no_photos_of_imagenet(layouts, tmp_path):
    layouts.text(tmp_path / "imagenet" / "classnames.txt", "n01440764 tench")
    with pytest.raises(MissingAssetError, match="the photos must lie at"):
        read("imagenet", tmp_path)


def test_a_mistyped_name_is_told_its_nearest(tmp_path):
    with pytest.raises(DatasetError, match="no data set 'flower102'; did you mean flowers102"):
        read_dataset("flower102", tmp_path)


def test_a_dataset_checks_itself():
    example = Example("a.jpg", "/a.jpg", 0, "A", "a")
    good = {"name": "x", "display_names": ("A",), "prompt_names": ("a",), "train": (), "val": (), "test": (example,)}
    dataset = PhotoDataset(**good, split_sha256="", split_source="")
    with pytest.raises(DatasetError, match="has no part 'dev'"):
        dataset.part("dev")
    with pytest.raises(DatasetError, match="1 prompt names and 2 display names"):
        PhotoDataset(**good | {"display_names": ("A", "B")}, split_sha256="", split_source="")
    with pytest.raises(DatasetError, match="has label 1, expected 0 to 0"):
        PhotoDataset(**good | {"test": (Example("a.jpg", "/a.jpg", 1, "A", "a"),)}, split_sha256="", split_source="")
    with pytest.raises(DatasetError, match=r"is called \('B', 'a'\), the class \('A', 'a'\)"):
        PhotoDataset(**good | {"test": (Example("a.jpg", "/a.jpg", 0, "B", "a"),)}, split_sha256="", split_source="")
