"""A run over a folder: every format read back, killed and resumed, odd photos, corrections, the page in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import yaml
from labelling_worlds import SIZES, ThreeBoxes, labeller, write_photos
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import box_iou

from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.detectors import Detected, read_box_file
from rar_mmdet.errors import ConfigError, ImageReadError, MissingAssetError, RecordFileError
from rar_mmdet.files.images import read_image
from rar_mmdet.files.yolo import read_yolo
from rar_mmdet.fusion import LogPool
from rar_mmdet.labelling import FORMATS, LabelRun
from rar_mmdet.labelling.corrections import read_corrections
from rar_mmdet.labelling.photos import find_photos
from rar_mmdet.testing import make_image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def labels_of(run):
    """(photo, class, box) of every label, as the run decides."""
    found = []
    for state, decided in run.decided():
        for record, decision in decided:
            row = decision.class_id
            if row is not None:
                x1, y1, x2, y2 = record.box_xyxy
                box = [x1, y1, min(x2, state.width), min(y2, state.height)]
                found.append((state.name, run.labeller.words.classes[row], box))
    return found


def test_every_format_is_read_back(photos, tmp_path):
    run = LabelRun(labeller(), photos, tmp_path / "out")
    run.run()
    places, counts = run.write(list(FORMATS))
    expected = labels_of(run)
    assert counts["labels"] == len(expected) == 9
    out = tmp_path / "out"
    assert [place.name for place in places] == [
        "coco.json", "yolo", "voc", "cvat.xml", "label_studio", "crops"
    ]  # fmt: skip

    with redirect_stdout(StringIO()):
        coco = COCO(str(out / "coco.json"))
    found = []
    for a in coco.loadAnns(coco.getAnnIds()):
        x, y, w, h = a["bbox"]
        assert 0 <= a["score"] <= 1
        name = coco.loadImgs(a["image_id"])[0]["file_name"]
        found.append((name, coco.loadCats(a["category_id"])[0]["name"], [x, y, x + w, y + h]))
    check(found, expected)

    yolo = read_yolo(out / "yolo", "train")
    names = {image["id"]: Path(image["file_name"]) for image in yolo["images"]}
    classes = {category["id"]: category["name"] for category in yolo["categories"]}
    found = []
    for a in yolo["annotations"]:
        x, y, w, h = a["bbox"]
        photo = Path(os.path.realpath(next((out / "yolo").rglob(names[a["image_id"]].name))))
        box = [x, y, x + w, y + h]
        found.append((photo.relative_to(photos.resolve()).as_posix(), classes[a["category_id"]], box))
    check(found, expected)
    assert yaml.safe_load((out / "yolo" / "data.yaml").read_text())["names"][0] == "red & <blue>"

    found = []
    files = sorted((out / "voc" / "Annotations").rglob("*.xml"))
    assert len(files) == 3
    for file in files:
        tree = ElementTree.parse(file)
        name = "/".join(filter(None, (tree.findtext("folder").strip("."), tree.findtext("filename"))))
        for one in tree.iter("object"):
            x1, y1, x2, y2 = (float(one.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
            found.append((name, one.findtext("name"), [x1 - 1, y1 - 1, x2, y2]))  # pixels count from 1
    check(found, expected, atol=0.5)  # and are whole

    found = []
    for image in ElementTree.parse(out / "cvat.xml").iter("image"):
        for box in image.iter("box"):
            corners = [float(box.get(key)) for key in ("xtl", "ytl", "xbr", "ybr")]
            found.append((image.get("name"), box.get("label"), corners))
    check(found, expected)

    found = []
    for task in json.loads((out / "label_studio" / "tasks.json").read_text(encoding="utf-8")):
        for result in task["predictions"][0]["result"]:
            value, scale = result["value"], (result["original_width"] / 100, result["original_height"] / 100)
            x, y = value["x"] * scale[0], value["y"] * scale[1]
            box = [x, y, x + value["width"] * scale[0], y + value["height"] * scale[1]]
            found.append((unquote(task["data"]["image"].split("?d=")[1]), value["rectanglelabels"][0], box))
    check(found, expected)
    labels = ElementTree.parse(out / "label_studio" / "label_config.xml").iter("Label")
    assert [label.get("value") for label in labels] == list(run.labeller.words.classes)

    crops = list((out / "crops").rglob("*.jpg"))
    assert len(crops) == 9
    assert all(min(Image.open(crop).size) > 10 for crop in crops)
    assert not list(out.glob(".*"))  # nothing half-written is left


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "cvat", "label-studio"])
def test_what_is_written_is_read_as_the_same_boxes(photos, tmp_path, form):
    """A round trip: labels out, and in again as the boxes of another run."""
    run = LabelRun(labeller(), photos, tmp_path / "out")
    run.run()
    (place,), _ = run.write([form])
    file = read_box_file(place / "tasks.json" if form == "label-studio" else place, split="train")
    found = []
    for row, (written, boxes) in enumerate(zip(file.photos, file.boxes, strict=True)):
        linked = Path(os.path.realpath(place / written))  # links, of other names where stems are equal
        name = linked.relative_to(photos.resolve()).as_posix() if form == "yolo" else written
        assert form == "yolo" or file.row_of(f"elsewhere/{name}") == row
        found += [(name, label, box) for label, box in zip(boxes.labels, boxes.boxes_xyxy.tolist(), strict=True)]
    check(found, labels_of(run), atol=0.51 if form == "voc" else 0.011)  # VOC has whole pixels


def check(found, expected, atol=0.011):
    def key(label):
        return label[0], label[1], round(label[2][0])

    found, expected = sorted(found, key=key), sorted(expected, key=key)
    assert [label[:2] for label in found] == [label[:2] for label in expected]
    np.testing.assert_allclose([box for *_, box in found], [box for *_, box in expected], atol=atol)


def test_a_killed_run_goes_on_and_ends_with_the_same_files(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("rar_mmdet.labelling.labeller.PHOTOS_AT_ONCE", 1)
    whole = LabelRun(labeller(), photos, tmp_path / "whole")
    whole.run()
    whole.write(["coco"])

    boxes = ThreeBoxes()
    killed = LabelRun(labeller(boxes), photos, tmp_path / "killed")
    write, lines = killed._recognize, []

    def dies(names):
        if len(lines) == 2:
            raise KeyboardInterrupt
        lines.append(names)
        yield from write(names)

    killed._recognize = dies
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    # What a kill in the middle of writing leaves: a record without its photo, half a line of a photo.
    with open(tmp_path / "killed" / "records.jsonl", "a") as stream:
        stream.write('{"image": "half')
    with open(tmp_path / "killed" / "photos.jsonl", "a") as stream:
        stream.write('{"id": 3, "na')
    boxes.calls.clear()
    resumed = LabelRun(labeller(boxes), photos, tmp_path / "killed")
    assert resumed.run()["done_before"] == 2
    assert boxes.calls == sorted(SIZES)[2:]
    resumed.write(["coco"])
    for name in ("records.jsonl", "photos.jsonl", "coco.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sigkill_in_the_middle(tmp_path):
    """A process of its own, killed for real; what goes on ends with the bytes of a run that nobody stopped."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(400):
        Image.fromarray(make_image(40, 40, seed=number % 7)).save(folder / f"{number:03d}.png")
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests")!r})
from labelling_worlds import ThreeBoxes, labeller
from rar_mmdet.labelling import LabelRun

class Stops(ThreeBoxes):
    def detect(self, images, paths=None):
        if len(self.calls) >= 300:
            time.sleep(600)  # not at its end, however late the kill comes
        return super().detect(images, paths)

LabelRun(labeller(Stops()), {str(folder)!r}, sys.argv[1]).run()
"""
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    done, end = tmp_path / "killed" / "photos.jsonl", time.monotonic() + 600
    while not (done.is_file() and done.read_bytes().count(b"\n") >= 16) and time.monotonic() < end:
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -9
    resumed = LabelRun(labeller(), folder, tmp_path / "killed")
    assert 16 <= len(resumed.done) < 400
    whole = LabelRun(labeller(), folder, tmp_path / "whole")
    for run in (resumed, whole):
        run.run()
        run.write(["coco"])
    for name in ("records.jsonl", "photos.jsonl", "coco.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_new_photos_do_not_change_the_ids_of_others(photos, tmp_path):
    LabelRun(labeller(), photos, tmp_path / "out").run()
    shutil.copy(photos / "a.png", photos / "0.png")  # sorts first
    run = LabelRun(labeller(), photos, tmp_path / "out")
    run.run()
    assert [(state.id, state.name) for state in run.done] == [*enumerate(sorted(SIZES), 1), (4, "0.png")]


def test_odd_photos_are_named_and_counted(photos, tmp_path):
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "film.mp4").write_bytes(b"x")
    (photos / "raw.NEF").write_bytes(b"x")
    (photos / ".hidden.jpg").write_bytes(b"x")
    with suppress(OSError):  # some disks take no such name
        (photos / os.fsdecode(b"no utf\xff.png")).write_bytes((photos / "a.png").read_bytes())
    (photos / "again").symlink_to(photos, target_is_directory=True)  # a circle
    names, others = find_photos(photos)
    assert names == sorted([*SIZES, "empty.jpg", "cut.png"])
    misnamed = others.pop("photo with a name that is no UTF-8", [])
    assert misnamed in ([], ["no utf\\udcff.png"])
    assert others == {"RAW": ["raw.NEF"], "video": ["film.mp4"]}
    run = LabelRun(labeller(), photos, tmp_path / "out")
    counts = run.run()
    assert (counts["unreadable"], counts["labelled"]) == (2, 3)
    assert {state.name for state in run.done if state.error} == {"empty.jpg", "cut.png"}
    assert len(labels_of(run)) == 9


def test_a_bad_box_costs_its_photo_alone(photos, tmp_path):
    class Odd(ThreeBoxes):
        def boxes(self, height, width):
            return super().boxes(height, width) + (1000 if (width, height) == SIZES["a.png"] else 0)

    run = LabelRun(labeller(Odd()), photos, tmp_path / "out")
    counts = run.run()
    assert (counts["unreadable"], counts["labelled"]) == (1, 2)
    assert "cannot be cropped" in next(state.error for state in run.done if state.error)


def test_folders_without_photos(tmp_path):
    with pytest.raises(MissingAssetError, match="there is no folder"):
        find_photos(tmp_path / "nowhere")
    (tmp_path / "a.cr2").write_bytes(b"x")
    with pytest.raises(ImageReadError, match=r"holds no photo \(1 RAW \(a.cr2\)\); .* save HEIC as JPEG"):
        find_photos(tmp_path)


def test_a_folder_with_other_labels_is_refused(photos, tmp_path):
    LabelRun(labeller(), photos, tmp_path / "out").run()
    with pytest.raises(ConfigError, match=r"another run \(words differ\): .* --overwrite to begin anew"):
        LabelRun(labeller(words=["x", "y", "z"]), photos, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"\(config differ\)"):
        LabelRun(labeller(), photos, tmp_path / "out", {"config": "other"})
    anew = LabelRun(labeller(words=["x", "y", "z"]), photos, tmp_path / "out", overwrite=True)
    assert anew.done == []


def test_a_full_disk_loses_nothing(photos, tmp_path, monkeypatch):
    run = LabelRun(labeller(), photos, tmp_path / "out")
    run.run()
    run.write(["coco", "voc"])
    before = (tmp_path / "out" / "coco.json").read_bytes()

    def full(self, photo):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FORMATS["voc"], "add", full)
    with pytest.raises(OSError, match="No space left"):
        run.write(["coco", "voc"])
    assert (tmp_path / "out" / "coco.json").read_bytes() == before
    assert len(list((tmp_path / "out" / "voc" / "Annotations").rglob("*.xml"))) == 3
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_disk_that_is_full_at_the_end_loses_nothing(photos, tmp_path, monkeypatch):
    """What is written may show only when a file is closed that there is no room for it: no format is moved then."""
    run = LabelRun(labeller(), photos, tmp_path / "out")
    run.run()
    run.write(["crops", "coco", "cvat"])
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def without_room(self):
        self._text(Path("/dev/full")).write("no room")

    for name in ("coco", "cvat"):
        monkeypatch.setattr(FORMATS[name], "_end", without_room)
    (tmp_path / "out" / "corrections.json").write_text(
        '{"corrections": [{"photo": "a.png", "region": 0, "class": null}]}'
    )
    with pytest.raises(OSError, match="No space left"):
        run.write(["crops", "coco", "cvat"])
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list((tmp_path / "out").glob(".*"))


def test_corrections_are_folded_in(photos, tmp_path):
    run = LabelRun(labeller(), photos, tmp_path / "out")
    run.run()
    _, before = run.write(["coco"])
    assert before["corrected"] == 0
    choices = [
        {"photo": "a.png", "region": 0, "class": "dog"},
        {"photo": "a.png", "region": 1, "class": None},
    ]
    file = tmp_path / "out" / "corrections.json"
    file.write_text(json.dumps({"corrections": choices}))
    _, after = run.write(["coco"])
    assert (after["corrected"], after["labels"]) == (2, before["labels"] - 1)
    content = json.loads((tmp_path / "out" / "coco.json").read_text(encoding="utf-8"))
    image = next(i["id"] for i in content["images"] if i["file_name"] == "a.png")
    own = [a for a in content["annotations"] if a["image_id"] == image]
    assert (len(own), own[0]["score"]) == (2, 1.0)
    assert content["categories"][own[0]["category_id"] - 1]["name"] == "dog"
    for text, message in (
        ("[]", "are no file that the review page saved"),
        ('{"corrections": [{"photo": "a"}]}', "are no file that the review page saved"),
        ('{"corrections": [{"photo": "a", "region": 0, "class": "cow"}]}', "name 'cow', which is not among the words"),
    ):
        file.write_text(text)
        with pytest.raises(RecordFileError, match=message):
            read_corrections(file, run.labeller.words)


def test_the_command_with_the_demos_models(tmp_path, capsys):
    out = tmp_path / "labels"
    line = [
        "label", str(ROOT / "demo" / "photos"), "--words", str(ROOT / "demo" / "photos" / "words.txt"), "--boxes",
        str(ROOT / "demo" / "photos" / "boxes.json"), "--embedded", "--out", str(out),
    ]  # fmt: skip
    assert rar_mmdet([*line, "--formats", "coco", "yolo"]) == 0
    shown = capsys.readouterr().out
    content = json.loads((out / "coco.json").read_text())
    unsure = json.loads((out / "unsure.json").read_text())
    truth = json.loads((ROOT / "demo" / "photos" / "boxes.json").read_text())
    assert len(content["annotations"]) + len(unsure) == len(truth["annotations"]) == 30
    assert f"4 photos; {len(content['annotations'])} labels, {len(unsure)} boxes without one" in shown
    (tmp_path / "c.json").write_text('{"corrections": [{"photo": "photo1.jpg", "region": 0, "class": null}]}')
    assert rar_mmdet([*line, "--apply", str(tmp_path / "c.json")]) == 0
    shown = capsys.readouterr().out
    assert "4 photos, 4 of them done before" in shown
    assert "1 corrected by hand" in shown
    assert rar_mmdet([*line, "--formats", "coca"]) == 2
    assert "there is no format 'coca'; known are coco, yolo" in capsys.readouterr().err


def test_ctrl_c_and_a_full_disk_say_how_to_go_on(tmp_path, capsys, monkeypatch):
    photos = ROOT / "demo" / "photos"
    line = ["label", str(photos), "--words", str(photos / "words.txt"), "--embedded", "--whole", "--out"]

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(LabelRun, "run", interrupted)
    assert rar_mmdet([*line, str(tmp_path / "a")]) == 130
    assert "stopped; the same command goes on where it was" in capsys.readouterr().err

    def full(self):
        raise OSError(28, "No space left on device", str(self.out / "records.jsonl"))

    monkeypatch.setattr(LabelRun, "run", full)
    assert rar_mmdet([*line, str(tmp_path / "a")]) == 2
    told = capsys.readouterr().err
    assert not list((tmp_path / "a").glob("*.part"))
    assert "records.jsonl: No space left on device; nothing is half-written. Make room, then give the same" in told
    monkeypatch.undo()
    missing = tmp_path / "nowhere" / "unsure.json"
    assert rar_mmdet([*line, str(tmp_path / "a"), "--keep-unsure", str(missing)]) == 2
    assert (
        "No such file or directory; nothing is half-written. See to that, then give the same" in capsys.readouterr().err
    )


def test_a_photo_of_20000_pixels(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20_000, 300), (90, 120, 30)).save(tmp_path / "photos" / "wide.png")
    run = LabelRun(labeller(), tmp_path / "photos", tmp_path / "out")
    assert run.run()["labelled"] == 1
    run.write(list(FORMATS))
    assert json.loads((tmp_path / "out" / "coco.json").read_text())["images"][0]["width"] == 20_000


def test_a_detector_finds_the_boxes(tmp_path, capsys):
    photos, words = ROOT / "demo" / "photos", ROOT / "demo" / "photos" / "words.txt"
    out = tmp_path / "labels"
    assert rar_mmdet(["label", str(photos), "--words", str(words), "--embedded", "--out", str(out)]) == 0
    labels = json.loads((out / "coco.json").read_text())
    unsure = json.loads((out / "unsure.json").read_text())
    truth = json.loads((photos / "boxes.json").read_text())
    names = {i["id"]: i["file_name"] for i in truth["images"]}
    found = {image["file_name"]: [] for image in labels["images"]}
    by_id = {image["id"]: image["file_name"] for image in labels["images"]}
    for a in labels["annotations"]:
        x, y, w, h = a["bbox"]
        found[by_id[a["image_id"]]].append([x, y, x + w, y + h])
    for entry in unsure:
        found[entry["photo"]].append(entry["box_xyxy"])
    covered = 0
    for a in truth["annotations"]:
        x, y, w, h = a["bbox"]
        boxes = torch.tensor(found[names[a["image_id"]]]).reshape(-1, 4)
        covered += bool((box_iou(torch.tensor([[x, y, x + w, y + h]], dtype=boxes.dtype), boxes) > 0.5).any())
    assert covered >= 0.7 * len(truth["annotations"])
    capsys.readouterr()
    line = ["label", str(photos), "--words", str(words), "--config", str(ROOT / "configs" / "demo" / "rar_demo.py")]
    assert rar_mmdet(line) == 2
    assert "say where boxes come from: --detector MODEL, --boxes FILE, or --whole" in capsys.readouterr().err
    assert rar_mmdet([*line, "--detector", "iSEE-Laboratory/llmdet_tiny"]) == 2
    assert "hf download iSEE-Laboratory/llmdet_tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("boxes", "told"),
    [
        ([], "say where boxes come from: --detector MODEL, --boxes FILE, or --whole"),
        (["--boxes", "nowhere.json"], "box file nowhere.json does not exist"),
        (["--detector", "nobody/nothing"], "hf download nobody/nothing"),
    ],
)
def test_all_that_is_missing_is_listed_at_once(boxes, told, tmp_path, capsys, monkeypatch):
    """Boxes, the encoder's weights, the ranker's: with what to type for each."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    photos = ROOT / "demo" / "photos"
    line = [
        "label",
        str(photos),
        "--words",
        str(photos / "words.txt"),
        "--config",
        str(ROOT / "configs/rar_lvis_qwen.py"),
    ]
    assert rar_mmdet([*line, *boxes]) == 2
    message = capsys.readouterr().err
    assert re.search(r"error: see to what is not there, then give the command again:\n  ", message)
    for part in (told, "hf download timm/vit_base_patch16_clip_224.openai", "hf download Qwen/Qwen2.5-VL-7B-Instruct"):
        assert part in message


def test_python_in_five_lines():
    found = labeller()(make_image(40, 60, seed=2))
    assert len(found) == 3
    assert all(name in {"red & <blue>", 'say "cat"', "poodle", "łoś", None} for name, _, _ in found)
    with pytest.raises(ConfigError, match=r"min_score must be in \[0, 1\], got 2"):
        labeller(min_score=2)


class Certain(ThreeBoxes):
    """Boxes of a detector that knows one of the words and gives it to every box."""

    def detect(self, images, paths=None):
        rows, ones = torch.arange(3), torch.ones(3)
        return [
            Detected(one.boxes_xyxy, one.scores, ("dog",), rows, torch.zeros(3, dtype=torch.int64), ones)
            for one in super().detect(images, paths)
        ]


def test_a_detectors_own_names_join(photos):
    """A recogniser that joins class scores is told what the detector says of the words; weight 1 leaves it alone."""
    ours = labeller(boxes=Certain(), words=["cat", "dog", "bird"])
    ours.recognizer.detector_fusion = LogPool(weight=1.0)
    photo = photos / "a.png"
    (records,) = ours.recognize([(str(photo), read_image(photo))])
    assert [record.names[0] for record in records] == ["dog"] * 3
    again = ours.recognize_again(photo, records)  # records do not keep it: the detector has no opinion then
    assert {record.names for record in again} != {record.names for record in records}
    assert [record.box_xyxy for record in again] == [record.box_xyxy for record in records]
