"""Every format is taken by a reader that people have: supervision's loaders, Ultralytics' rules, `--boxes` itself."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import pytest
import torch
import yaml
from labelling_worlds import ThreeBoxes, labeller, write_photos
from PIL import Image

from rar_mmdet.detectors import Detected, read_box_file
from rar_mmdet.labelling import FORMATS, LabelRun
from rar_mmdet.labelling.photos import Label, LabelledPhoto
from rar_mmdet.labelling.writers import open_writers
from rar_mmdet.testing import make_image

sv = pytest.importorskip("supervision", reason="supervision is not installed: pip install --no-deps supervision")

# Beside photos in folders, of one stem and with letters of elsewhere: kinds that readers of YOLO and VOC pass over,
# a name that is no address, a folder that such readers take for theirs, and a photo stored on its side.
ODD = ("film.gif", "scan.ppm", "# 100%+&?.png", "images/d.png")
LAYOUTS = {  # format -> folder of photos, folder of labels
    "yolo": ("yolo/images", "yolo/labels"),
    "voc": ("voc/JPEGImages", "voc/Annotations"),
}


class Masks(ThreeBoxes):
    """Boxes with a mask of one part, one of two, and none."""

    def masks(self, height, width):
        masks = torch.zeros(3, height, width, dtype=torch.bool)
        masks[0, 3:20, 2:14] = masks[1, 7:14, 6:14] = masks[1, 20:28, 18:26] = True
        return masks

    def detect(self, images, paths=None):
        found = super().detect(images, paths)
        return [
            Detected(one.boxes_xyxy, one.scores, masks=self.masks(*image.shape[:2]))
            for one, image in zip(found, images, strict=True)
        ]


def photos_of(folder):
    write_photos(folder)
    (folder / "images").mkdir()
    for seed, name in enumerate(ODD, 20):
        Image.fromarray(make_image(40, 64, seed=seed)).save(folder / name)
    side = Image.fromarray(make_image(40, 64, seed=30))
    exif = side.getexif()
    exif[0x0112] = 6
    side.save(folder / "on its side.jpg", exif=exif)
    return folder


@pytest.fixture(scope="module", params=[ThreeBoxes, Masks])
def run(request, tmp_path_factory):
    """A run over odd photos that wrote every format."""
    folder = tmp_path_factory.mktemp("readers")
    run = LabelRun(labeller(request.param()), photos_of(folder / "photos"), folder / "out")
    assert run.run()["labelled"] == 8
    run.write(list(FORMATS))
    return run


def truth_of(run):
    """Photo -> (classes, boxes) as the run decides."""
    classes, truth = run.labeller.words.classes, {}
    for state, decided in run.decided():
        rim = [state.width, state.height] * 2
        boxes = np.minimum([record.box_xyxy for record, _ in decided], rim)
        truth[state.name] = [classes[decision.class_id] for _, decision in decided], boxes
    return truth


def original(path, photos):
    """The name of the photo behind a path; those that were converted have their stem."""
    place = Path(path).resolve()
    if place.is_relative_to(photos.resolve()):
        return place.relative_to(photos.resolve()).as_posix()
    return next(name for name in ODD if Path(name).stem == place.stem)


def dataset_of(run, name):
    """(photo, class names, `supervision.Detections`) of a format, by supervision's loader."""
    if name == "coco":
        found = [sv.DetectionDataset.from_coco(str(run.photos), str(run.out / "coco.json"))]
    else:
        photos, labels = (run.out / place for place in LAYOUTS[name])
        folders = [photos, *(p for p in photos.rglob("*") if p.is_dir())]  # it looks into one folder alone
        pairs = [(str(folder), str(labels / folder.relative_to(photos))) for folder in folders]
        yaml_file = (str(run.out / "yolo" / "data.yaml"),) if name == "yolo" else ()
        load = sv.DetectionDataset.from_yolo if name == "yolo" else sv.DetectionDataset.from_pascal_voc
        found = [load(*pair, *yaml_file) for pair in pairs]
    return [
        (original(path, run.photos), [dataset.classes[c] for c in one.class_id], one)
        for dataset in found
        for path, _, one in dataset
    ]


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_supervision_loads_exactly_what_was_written(run, name):
    truth, outlines = truth_of(run), isinstance(run.labeller.detector, Masks)
    found = dataset_of(run, name)
    assert sorted(photo for photo, *_ in found) == sorted(truth)
    for photo, classes, one in found:
        expected, boxes = truth[photo]
        assert classes == expected
        if name == "voc":  # whole pixels
            np.testing.assert_array_equal(one.xyxy, np.floor(boxes + 0.5))
        elif not (outlines and name == "yolo"):  # there an object is its outline
            np.testing.assert_allclose(one.xyxy, boxes, atol=0.011)
        if not outlines or name == "voc":
            assert one.mask is None
            continue
        masks = run.labeller.detector.masks(*one.mask.shape[1:]).numpy().astype(np.uint8)
        # It draws polygons with their rim, and the way between two parts of a YOLO line as wide as a pixel.
        for drawn, mask in zip(one.mask[:2], masks[:2], strict=True):
            assert drawn[mask > 0].all()
            assert (drawn & (cv2.dilate(mask, np.ones((3, 3), np.uint8)) == 0)).sum() <= (10 if name == "yolo" else 0)


def test_ultralytics_rules_hold(run):
    """https://docs.ultralytics.com/datasets/detect/ and /segment/; also run with its reader, see docs/labelling.md."""
    root, truth = run.out / "yolo", truth_of(run)
    content = yaml.safe_load((root / "data.yaml").read_text(encoding="utf-8"))
    assert content["names"] == dict(enumerate(run.labeller.words.classes))
    photos = [p for p in (root / content["train"]).rglob("*") if p.is_file()]
    assert len(photos) == len(truth)
    read = set()
    for photo in photos:
        assert photo.suffix.lower() in (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
        labels = Path("/labels/".join(str(photo).rsplit("/images/", 1))).with_suffix(".txt")
        read.add(labels)
        rows = [line.split() for line in labels.read_text().splitlines()]
        assert [content["names"][int(row[0])] for row in rows] == truth[original(photo, run.photos)][0]
        # All of a data set are boxes, or all are outlines.
        assert {len(row) == 5 for row in rows} == {not isinstance(run.labeller.detector, Masks)}
        assert all(len(row) % 2 and all(0 <= float(value) <= 1 for value in row[1:]) for row in rows)
    assert read == set((root / "labels").rglob("*.txt"))


@pytest.mark.parametrize("place", ["coco.json", "voc", "cvat.xml", "label_studio/tasks.json"])
def test_what_was_written_can_be_given_as_boxes(run, place):
    """The same boxes come back: VOC's pixels, which count from 1, and addresses that are quoted are understood."""
    if place == "cvat.xml" and isinstance(run.labeller.detector, Masks):
        pytest.skip("an object of two parts is two polygons there")
    file = read_box_file(run.out / place)
    for name, (classes, boxes) in truth_of(run).items():
        found = file.boxes[file.row_of(name)]
        order = found.boxes_xyxy[:, 0].argsort()  # best first; here they go from left to right
        np.testing.assert_allclose(found.boxes_xyxy[order], boxes, atol=0.5 if place == "voc" else 0.011)
        assert found.region_ids.tolist() == [0, 1, 2]
        assert [file.names[row] for row in found.name_ids[order]] == classes


def test_addresses_of_label_studio_are_quoted(run):
    tasks = json.loads((run.out / "label_studio" / "tasks.json").read_text(encoding="utf-8"))
    addresses = [urlsplit(task["data"]["image"]) for task in tasks]
    assert {parse_qs(address.query)["d"][0] for address in addresses} == set(truth_of(run))
    assert not any(address.fragment for address in addresses)


def test_no_photo_takes_the_labels_of_another(tmp_path):
    """Also where the name that tells two photos apart is that of a third."""
    names = ["a.jpg", "a_png.jpg", "a.png", "a_png.png"]
    photo = Image.fromarray(make_image(20, 30, seed=1))
    writers = open_writers(tmp_path, ["yolo", "voc"], ["cat"])
    for number, name in enumerate(names, 1):
        photo.save(tmp_path / name)
        for writer in writers:
            writer.add(LabelledPhoto(number, name, tmp_path / name, 30, 20, (Label((1.9, 3, 2.3, 8.6), 0, 0.5),)))
    for writer in writers:
        writer.finish()
    for photos, labels in LAYOUTS.values():
        links = sorted((tmp_path / photos).iterdir())
        assert sorted(link.resolve().name for link in links) == sorted(names)
        assert len({link.stem for link in links}) == 4 == len(list((tmp_path / labels).iterdir()))
    listed = (tmp_path / "voc" / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    assert sorted(listed) == sorted(link.stem for link in links)
    # Whole numbers in whole pixels, and a box narrower than one is one pixel wide.
    numbers = ElementTree.parse(tmp_path / "voc" / "Annotations" / "a.xml").find("object/bndbox")
    assert [number.text for number in numbers] == ["3", "4", "3", "9"]
    (voc, *_) = read_box_file(tmp_path / "voc").boxes
    assert voc.boxes_xyxy.tolist() == [[2, 3, 3, 9]]


def test_a_disk_without_links_gets_copies(tmp_path, monkeypatch):
    def refused(self, target):
        raise OSError(1, "Operation not permitted")

    photo = photos_of(tmp_path / "photos") / "a.png"
    monkeypatch.setattr(Path, "symlink_to", refused)
    (writer,) = open_writers(tmp_path / "out", ["voc"], ["cat"])
    writer.add(LabelledPhoto(1, "a.png", photo, 60, 40, ()))
    place = writer.finish()
    shutil.rmtree(tmp_path / "photos")
    assert Image.open(place / "JPEGImages" / "a.png").size == (60, 40)
