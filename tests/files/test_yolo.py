"""YOLO folders: boxes come back in pixels, whatever the layout; every odd line is named."""

import pytest
from PIL import Image

from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.files.yolo import read_yolo


def make_folder(root, label="0 0.5 0.5 0.25 0.5\n", names="names: [cat, dog]", split="val: images/val"):
    (root / "images" / "val").mkdir(parents=True)
    (root / "labels" / "val").mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(root / "images" / "val" / "a.jpg")
    Image.new("RGB", (40, 60)).save(root / "images" / "val" / "b.png")
    (root / "labels" / "val" / "a.txt").write_text(label)
    (root / "data.yaml").write_text(f"path: /somewhere/else\n{split}\n{names}\n")
    return root


def test_boxes_in_pixels(tmp_path):
    found = read_yolo(make_folder(tmp_path, "0 0.5 0.5 0.25 0.5\n\n1 0 0 0.5 0 0.5 1 0 1\n0 0.1 0.1 0.2 0.2 0.9\n"))
    assert [c["name"] for c in found["categories"]] == ["cat", "dog"]
    assert [(i["file_name"], i["width"], i["height"]) for i in found["images"]] == [
        ("images/val/a.jpg", 200, 100),
        ("images/val/b.png", 40, 60),
    ]
    assert [(a["image_id"], a["category_id"], a["bbox"]) for a in found["annotations"]] == [
        (1, 1, [75, 25, 50, 50]),
        (1, 2, [0, 0, 100, 100]),
        (1, 1, [0, 0, 40, 20]),
    ]


def test_an_upright_photo_has_the_size_people_see(tmp_path):
    folder = make_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(folder / "images" / "val" / "a.jpg", exif=exif)
    found = read_yolo(folder)
    assert (found["images"][0]["width"], found["images"][0]["height"]) == (100, 200)
    assert found["annotations"][0]["bbox"] == [37.5, 50, 25, 100]


@pytest.mark.parametrize("names", ["names: {0: cat, 1: dog}", "names:\n  - cat\n  - dog"], ids=["dict", "list"])
def test_names(tmp_path, names):
    assert [c["name"] for c in read_yolo(make_folder(tmp_path, names=names))["categories"]] == ["cat", "dog"]


def test_classes_txt_and_a_list_of_photos(tmp_path):
    folder = make_folder(tmp_path)
    (folder / "list.txt").write_text("images/val/a.jpg\n")
    (folder / "data.yaml").write_text("val: list.txt\nnames: [cat, dog]\n")
    assert len(read_yolo(folder)["images"]) == 1
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cat\ndog\n")
    assert len(read_yolo(folder)["images"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"label": "2 0.5 0.5 0.1 0.1"}, r"a\.txt, line 1: class 2, but there are 2 names", id="class"),
        pytest.param({"label": "cat 0.5 0.5 0.1 0.1"}, "line 1: could not convert .* expected numbers", id="word"),
        pytest.param({"label": "0 0.5 0.5 0.1"}, "3 numbers after the class; expected 4", id="short"),
        pytest.param({"label": "0 50 50 10 10"}, r"is not in 0\.\.1; YOLO boxes are shares", id="pixels"),
        pytest.param({"label": "0 0.6 0.7 0.8 0.9"}, "leaves the photo as cx, cy, width, height", id="corners"),
        pytest.param({"names": "names: {1: cat, 2: dog}"}, r"numbers \[1, 2\]\.\.\., expected 0, 1, 2", id="numbers"),
        pytest.param({"names": "names: cat"}, "`names` is 'cat', expected a list", id="names"),
        pytest.param({"split": "train: images/val"}, "has no split 'val'; it has train", id="split"),
        pytest.param({"split": "val: images/none"}, "no photo of split 'val' in .*none", id="photos"),
        pytest.param({"names": "names: [cat"}, "is not YAML", id="yaml"),
    ],
)
def test_odd_folders_are_named(tmp_path, changes, message):
    with pytest.raises(AnnotationFileError, match=message):
        read_yolo(make_folder(tmp_path, **changes))


def test_another_folder(tmp_path):
    with pytest.raises(AnnotationFileError, match=r"holds none of data\.yaml, .* is it the folder of a YOLO data set"):
        read_yolo(tmp_path)
