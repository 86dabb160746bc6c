"""Outlines cover what the mask covers, and reach every format that has room for them."""

import json
import xml.etree.ElementTree as ElementTree
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from labelling_worlds import labeller
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from rar_mmdet.detectors import AnnotationDetector, Detected
from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.files.yolo import read_yolo
from rar_mmdet.labelling import LabelRun
from rar_mmdet.labelling.outlines import area_of, clipped, one_line, outline_of_mask, outline_of_segmentation
from rar_mmdet.testing import make_image

HW = (48, 64)


def drawn(outline, image_hw=HW):
    return mask_api.decode(mask_api.merge(mask_api.frPyObjects([list(p) for p in outline], *image_hw))).astype(bool)


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def shapes():
    ys, xs = np.mgrid[: HW[0], : HW[1]]
    ring = (np.hypot(ys - 24, xs - 30) < 18) & (np.hypot(ys - 24, xs - 30) > 6)
    return {
        "disc": np.hypot(ys - 20, xs - 30) < 12.3,
        "box": (ys >= 5) & (ys < 9) & (xs >= 7) & (xs < 30),
        "corner": (ys < 12) & (xs < 20) & (ys + xs < 25),
        "two parts": ((ys < 10) & (xs < 10)) | ((ys > 30) & (xs > 40)),
        "slope": ys > xs / 2 + 8,
        "ring": ring,
        "pixel": (ys == 4) & (xs == 9),
    }


@pytest.mark.parametrize("name", list(shapes()))
def test_an_outline_drawn_again_is_the_mask(name):
    mask = shapes()[name]
    outline = outline_of_mask(mask)
    assert len(outline) == (2 if name == "two parts" else 1)
    if name == "ring":
        mask = np.hypot(*(np.mgrid[: HW[0], : HW[1]] - np.array([24, 30])[:, None, None])) < 18  # its hole is filled
    assert overlap(drawn(outline), mask) > 0.97
    assert area_of(outline) == pytest.approx(mask.sum(), rel=0.03)
    runs = mask_api.encode(np.asfortranarray(mask))
    assert outline_of_segmentation(runs, HW) == outline_of_mask(mask)


def test_an_empty_mask_has_no_outline():
    assert outline_of_mask(np.zeros(HW, bool)) == ()
    assert area_of(()) == 0


def test_a_rectangle_is_exact():
    assert sorted(zip(*[iter(outline_of_mask(shapes()["box"])[0])] * 2, strict=True)) == [
        (7, 5),
        (7, 9),
        (30, 5),
        (30, 9),
    ]


def test_parts_on_one_line_cover_the_same():
    outline = outline_of_mask(shapes()["two parts"])
    joined = one_line(outline)
    assert overlap(drawn([joined]), drawn(outline)) > 0.97
    assert area_of((tuple(joined),)) == pytest.approx(area_of(outline))
    assert one_line(outline[:1]) == list(outline[0])


def test_points_outside_go_to_the_rim():
    assert clipped(((-3, 2, 70, 2, 70, 50),), (64, 48)) == ((0.0, 2, 64.0, 2, 64.0, 48.0),)


class Masks:
    """A detector of three masks, one of two parts."""

    def detect(self, images, paths=None):
        masks = torch.from_numpy(np.stack([shapes()[name] for name in ("disc", "two parts", "box")]))
        boxes = torch.tensor([[18.0, 8, 43, 33], [0, 0, 64, 48], [7, 5, 30, 9]])
        return [Detected(boxes, torch.tensor([0.9, 0.8, 0.7]), masks=masks) for _ in images]


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for seed in range(2):
        Image.fromarray(make_image(*HW, seed=seed)).save(tmp_path / "photos" / f"{seed}.png")
    return tmp_path / "photos"


def masks_of(out):
    with redirect_stdout(StringIO()):
        coco = COCO(str(out / "coco.json"))
    found = coco.loadAnns(coco.getAnnIds(imgIds=1))
    return [coco.annToMask(a).astype(bool) for a in found], [a["area"] for a in found]


def test_masks_of_a_detector_are_in_coco_yolo_and_cvat(photos, tmp_path):
    run = LabelRun(labeller(Masks()), photos, tmp_path / "out")
    run.run()
    run.write(["coco", "yolo", "cvat", "voc"])
    expected = [shapes()[name] for name in ("disc", "two parts", "box")]
    masks, areas = masks_of(tmp_path / "out")
    assert all(overlap(a, b) > 0.97 for a, b in zip(masks, expected, strict=True))
    assert areas == pytest.approx([mask.sum() for mask in expected], rel=0.03)

    yolo = [a for a in read_yolo(tmp_path / "out" / "yolo", "train")["annotations"] if a["image_id"] == 1]
    assert all(overlap(drawn(a["segmentation"]), b) > 0.97 for a, b in zip(yolo, expected, strict=True))

    image = next(ElementTree.parse(tmp_path / "out" / "cvat.xml").iter("image"))
    parts = [
        (p.get("group_id"), [float(v) for point in p.get("points").split(";") for v in point.split(",")]) for p in image
    ]
    assert [group for group, _ in parts] == [None, "2", "2", None]
    assert overlap(drawn([points for group, points in parts if group]), expected[1]) > 0.97
    # The run goes on: outlines are in the records.
    again = LabelRun(labeller(Masks()), photos, tmp_path / "out")
    again.write(["coco"])
    assert len(masks_of(tmp_path / "out")[0]) == 3


def box_file(path, segmentations):
    boxes = [[18, 8, 25, 25], [7, 5, 23, 4], [1, 1, 9, 9]]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box} | ({"segmentation": mask} if mask else {})
        for i, (box, mask) in enumerate(zip(boxes, segmentations, strict=True), 1)
    ]
    images = [{"id": 1, "file_name": "0.png", "width": 64, "height": 48}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    path.write_text(json.dumps(content))
    return path


def test_polygons_of_a_box_file_stay_as_they_are(photos, tmp_path):
    polygon = [7.25, 5.0, 29.5, 5.25, 18.0, 9.0]
    runs = mask_api.encode(np.asfortranarray(shapes()["disc"]))
    runs = {"size": runs["size"], "counts": runs["counts"].decode()}
    file = box_file(tmp_path / "boxes.json", [runs, [polygon], None])
    run = LabelRun(labeller(AnnotationDetector(file, missing="empty")), photos, tmp_path / "out")
    run.run()
    run.write(["coco", "yolo"])
    found = json.loads((tmp_path / "out" / "coco.json").read_text(encoding="utf-8"))["annotations"]
    assert [a.get("segmentation") for a in found][1:] == [[polygon], None]
    assert overlap(drawn(found[0]["segmentation"]), shapes()["disc"]) > 0.97
    # A box among outlines is written by its corners.
    yolo = read_yolo(tmp_path / "out" / "yolo", "train")["annotations"]
    assert [len(a["segmentation"][0]) for a in yolo][1:] == [6, 8]
    # What was written as outlines is read as boxes with outlines.
    again = AnnotationDetector(tmp_path / "out" / "yolo", split="train")
    assert again.file.boxes[0].segmentations[1][0] == pytest.approx(polygon, abs=0.01)


def test_a_broken_segmentation_is_refused(tmp_path):
    file = box_file(tmp_path / "boxes.json", [None, {"size": [48, 64], "counts": "0"}, None])
    with pytest.raises(
        AnnotationFileError, match="the segmentation of annotation 1 cannot be used: .* expected polygons"
    ):
        AnnotationDetector(file)
