"""Boxes from files in the documented formats of five tools: the same boxes, whatever wrote them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rar_mmdet.detectors import AnnotationDetector, read_box_file
from rar_mmdet.errors import AnnotationFileError, ImageReadError

# Two photos, 100 x 80; the second has none.
BOXES = {"cat": [10.0, 20.0, 40.0, 60.0], "red star": [50.0, 0.0, 100.0, 80.0]}
WIDTH, HEIGHT = 100, 80


def coco(folder):
    images = [{"id": i, "file_name": f"photos/{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)]
    categories = [{"id": 7 + i, "name": name} for i, name in enumerate(BOXES)]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 6 + i, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        for i, (x1, y1, x2, y2) in enumerate(BOXES.values(), 1)
    ]
    (folder / "coco.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return folder / "coco.json"


def yolo(folder):
    root = folder / "yolo"
    for part in ("images/val", "labels/val"):
        (root / part).mkdir(parents=True)
    lines = []
    for number, (x1, y1, x2, y2) in enumerate(BOXES.values()):
        shares = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
        lines.append(" ".join(map(str, (number, *shares))))
    for i in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"images/val/{i}.png")
    (root / "labels/val/1.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("path: .\nval: images/val\nnames: [cat, red star]\n")
    return root


def voc(folder, database="Unknown", shift=0):
    root = folder / "voc"
    root.mkdir()
    for i in (1, 2):
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x1 + shift}</xmin><ymin>{y1 + shift}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for name, (x1, y1, x2, y2) in (BOXES.items() if i == 1 else ())
        )
        (root / f"{i}.xml").write_text(
            f"<annotation><folder>photos</folder><filename>{i}.png</filename><source><database>{database}</database>"
            f"</source><size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>{objects}"
            "</annotation>"
        )
    return root


def cvat(folder):
    shapes = "".join(
        f'<box label="{name}" source="manual" occluded="0" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}" z_order="0"/>'
        for name, (x1, y1, x2, y2) in BOXES.items()
    )
    (folder / "cvat.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>'
        f'<image id="0" name="photos/1.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
        f'<image id="1" name="photos/2.png" width="{WIDTH}" height="{HEIGHT}"></image></annotations>'
    )
    return folder / "cvat.xml"


def label_studio(folder):
    results = [
        {
            "type": "rectanglelabels",
            "original_width": WIDTH,
            "original_height": HEIGHT,
            "value": {
                "x": x1,
                "y": y1 / 0.8,
                "width": x2 - x1,
                "height": (y2 - y1) / 0.8,
                "rotation": 0,
                "rectanglelabels": [name],
            },
        }
        for name, (x1, y1, x2, y2) in BOXES.items()
    ]
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/3/0a1b2c3d-1.png"}, "annotations": [{"result": results}]},
        {"id": 2, "data": {"image": "/data/local-files/?d=photos/2.png"}, "annotations": [{"result": []}]},
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return folder / "tasks.json"


TOOLS = [coco, yolo, voc, cvat, label_studio]


@pytest.mark.parametrize("write", TOOLS, ids=lambda f: f.__name__)
def test_every_tool_gives_the_same_boxes(write, tmp_path):
    detector = AnnotationDetector(write(tmp_path))
    photo = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    one, two = detector.detect([photo, photo], ["elsewhere/photos/1.png", "elsewhere/photos/2.png"])
    np.testing.assert_allclose(one.boxes_xyxy.numpy(), list(BOXES.values()), atol=2e-3)
    assert one.labels == list(BOXES)
    assert one.scores.tolist() == [1, 1]
    assert len(two) == 0
    assert two.labels == []


def test_files_of_the_voc_challenge_count_from_one(tmp_path):
    found = read_box_file(voc(tmp_path, "The VOC2007 Database", shift=1)).boxes[0]
    assert found.boxes_xyxy.tolist() == list(BOXES.values())


def test_scores_order_the_boxes(tmp_path):
    file = json.loads(coco(tmp_path).read_text())
    for annotation, score in zip(file["annotations"], (0.25, 0.75), strict=True):
        annotation["score"] = score
    (tmp_path / "scored.json").write_text(json.dumps(file))
    found = read_box_file(tmp_path / "scored.json").boxes[0]
    assert found.scores.tolist() == [0.75, 0.25]
    assert found.labels == ["red star", "cat"]


def test_turned_boxes_become_the_upright_box_around_them(tmp_path):
    text = cvat(tmp_path).read_text().replace('occluded="0"', 'occluded="0" rotation="90"')
    (tmp_path / "turned.xml").write_text(text)
    # 30 x 40 about (25, 40), a quarter turn: 40 x 30
    np.testing.assert_allclose(
        read_box_file(tmp_path / "turned.xml").boxes[0].boxes_xyxy[0], [5, 25, 45, 55], atol=1e-4
    )


def changed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def in_shares(path):
    """A Label Studio file whose rectangles are shares, not percent."""
    tasks = json.loads(path.read_text())
    for shape in tasks[0]["annotations"][0]["result"]:
        shape["value"] |= {key: shape["value"][key] / 100 for key in ("x", "y", "width", "height")}
    path.write_text(json.dumps(tasks))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: changed(voc(f) / "1.xml", "<xmax>40.0", "<xmax>3"), "ends before it begins.*Were x, y, width"),
        (lambda f: changed(voc(f) / "1.xml", "<xmin>10.0", "<xmin>ten"), "xmin is 'ten', expected a number of pixels"),
        (lambda f: changed(cvat(f), "<annotations>", "<a>"), "not complete XML"),
        (lambda f: changed(cvat(f), "<image ", "<track "), "not complete XML"),
        (
            lambda f: changed(cvat(f), '<?xml version="1.0" encoding="utf-8"?>', "<!DOCTYPE a [<!ENTITY b 'c'>]>"),
            "ENT|ent",
        ),
        (lambda f: changed(label_studio(f), '"x": 10.0', '"x": 1000'), "not in 0..100"),
        (lambda f: in_shares(label_studio(f)), "all 2 rectangles lie within 0 and 1; .* multiply x, y"),
        (lambda f: changed(label_studio(f), '"width": 50.0', '"width": 100.0'), "ends beyond the photo.*Were x1, y1"),
        (lambda f: changed(label_studio(f), '"data"', '"date"'), "export as 'JSON', not as 'JSON-MIN'"),
        (lambda f: changed(coco(f), "[10.0, 20.0, 30.0, 40.0]", "[10.0, 20.0, -3, 40.0]"), "size from 0 on"),
        (lambda f: f / "none.json", "does not exist"),
        (lambda f: f, "holds no .xml file"),
    ],
)
def test_odd_files_are_refused(make, message, tmp_path):
    with pytest.raises(AnnotationFileError, match=message):
        read_box_file(make(tmp_path))


def test_boxes_in_shares_of_the_photo_are_told_by_their_values(tmp_path):
    file = json.loads(coco(tmp_path).read_text())
    for annotation in file["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.3, 0.4]
    (tmp_path / "shares.json").write_text(json.dumps(file))
    with pytest.raises(AnnotationFileError, match="All 2 boxes lie within 0 and 1: multiply"):
        read_box_file(tmp_path / "shares.json")
    file["annotations"][0] |= {"bbox": [1, 2, 30, 40], "score": 7}
    (tmp_path / "scores.json").write_text(json.dumps(file))
    with pytest.raises(AnnotationFileError, match="score 7, expected 0 to 1"):
        read_box_file(tmp_path / "scores.json")
    (tmp_path / "results.json").write_text(json.dumps(file["annotations"]))
    with pytest.raises(AnnotationFileError, match="COCO result file, which does not name its photos"):
        read_box_file(tmp_path / "results.json")


def test_corners_in_a_coco_file_are_told_by_their_values(tmp_path):
    """They fit into their photo as x1, y1, x2, y2 and leave it as x, y, width, height; what fits as both stays."""
    file = json.loads(coco(tmp_path).read_text())
    for annotation, box in zip(file["annotations"], BOXES.values(), strict=True):
        annotation["bbox"] = box
    (tmp_path / "corners.json").write_text(json.dumps(file))
    with pytest.raises(AnnotationFileError, match=r"40\.0, 60\.0\], are x1, y1, x2, y2: .* Write x2 - x1"):
        read_box_file(tmp_path / "corners.json")
    file["annotations"] = file["annotations"][:1]
    (tmp_path / "one.json").write_text(json.dumps(file))
    assert read_box_file(tmp_path / "one.json").boxes[0].boxes_xyxy.tolist() == [[10, 20, 50, 80]]
    file["annotations"][0]["bbox"] = [0, 0, WIDTH + 30, HEIGHT]  # leaves the photo, whichever way it is read
    (tmp_path / "wide.json").write_text(json.dumps(file))
    assert "1 of 1 boxes" in read_box_file(tmp_path / "wide.json").notes[0]


def test_masks_of_another_size_are_refused(tmp_path):
    file = json.loads(coco(tmp_path).read_text())
    for size, fits in (([HEIGHT, WIDTH], True), ([WIDTH, HEIGHT], False)):
        file["annotations"][1]["segmentation"] = {"size": size, "counts": [0, HEIGHT * WIDTH]}
        (tmp_path / "masks.json").write_text(json.dumps(file))
        if fits:
            assert read_box_file(tmp_path / "masks.json").boxes[0].segmentations[1]["size"] == size
            continue
        with pytest.raises(AnnotationFileError, match=r"mask of annotation 1 is 100 x 80, its photo 80 x 100"):
            read_box_file(tmp_path / "masks.json")


def test_photos_that_do_not_fit_the_file(tmp_path):
    detector = AnnotationDetector(coco(tmp_path))
    photo = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with pytest.raises(AnnotationFileError, match="has no photo 'other.png'"):
        detector.detect([photo], ["other.png"])
    with pytest.raises(AnnotationFileError, match="give paths="):
        detector.detect([photo])
    with pytest.raises(ImageReadError, match="is 80x100 px but its annotation says 100x80"):
        detector.detect([photo.transpose(1, 0, 2).copy()], ["photos/1.png"])
    assert len(AnnotationDetector(coco(tmp_path), missing="empty").detect([photo], ["other.png"])[0]) == 0


def test_one_name_in_two_folders_needs_the_folder(tmp_path):
    file = json.loads(coco(tmp_path).read_text())
    file["images"][1]["file_name"] = "more/1.png"
    (tmp_path / "twins.json").write_text(json.dumps(file))
    boxes = read_box_file(tmp_path / "twins.json")
    assert boxes.row_of("/data/more/1.png") == 1
    assert boxes.row_of("/data/photos/1.png") == 0
    with pytest.raises(AnnotationFileError, match="may be any of 2 of its photos"):
        boxes.row_of("1.png")
