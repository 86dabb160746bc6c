"""The page: its answers against the labeller's, two users at once, what it refuses, and a real browser."""

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import open_browser
from PIL import Image

from rar_mmdet import RegionRecognizer
from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.detectors import Detected
from rar_mmdet.files.shipped import shipped
from rar_mmdet.labelling import FORMATS, Labeller, web_command
from rar_mmdet.labelling.command import build_labeller
from rar_mmdet.memory import TextMemory
from rar_mmdet.regions import RegionCropper
from rar_mmdet.testing import FakeEncoder, FakeRanker, make_image

for module in web_command.NEEDED:
    pytest.importorskip(module, reason="the extra [web] is not installed: pip install '.[web]'")

import uvicorn  # noqa: E402

from rar_mmdet.labelling import web  # noqa: E402

PHOTOS = Path(__file__).parents[2] / "demo" / "photos"
WORDS = "animal\n  cat | kitten\n  dog\n! shadow\nłoś"


class Boxes:
    """Three boxes a photo, of falling scores, one over the rim; remembers the photos it was asked about."""

    def __init__(self):
        self.calls = []

    def detect(self, images, paths=None):
        self.calls += paths
        boxes = torch.tensor([[2.0, 3, 20, 25], [5.25, 6.5, 28, 30], [10, 10, 999, 999]])
        limits = [torch.tensor([image.shape[1] + 2.0, image.shape[0] + 3.0] * 2) for image in images]
        return [Detected(torch.minimum(boxes, limit), torch.tensor([0.9, 0.6, 0.3])) for limit in limits]


def make_service(detector=None, max_pixels=10_000):
    recognizer = RegionRecognizer(
        cropper=RegionCropper(),
        encoder=FakeEncoder(),
        memory=TextMemory(cache_dir=None),
        category_names=["anything"],
        ranker=FakeRanker(),
        num_candidates=3,
    )
    return web.LabelService(Labeller(recognizer, ["anything"], detector or Boxes()), max_pixels)


def photo_bytes(width=60, height=40, seed=0, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(make_image(height, width, seed=seed)).save(file, kind)
    return file.getvalue()


def test_the_slider_says_what_the_labeller_decides():
    service, data = make_service(), photo_bytes()
    _, labeller, records = service._find(data, "a.png", WORDS)
    boxes = service.describe(data, "a.png", WORDS)["boxes"]
    assert len(boxes) == len(records) == 3
    for box, record in zip(boxes, records, strict=True):
        scores = [score for _, score in box["labels"]]
        assert scores == sorted(scores)
        for threshold in [*np.linspace(0, 1, 41), *scores]:
            (decision,) = labeller.decide([record], threshold)
            expected = (
                None if decision.class_id is None else (labeller.words.classes[decision.class_id], decision.score)
            )
            assert next((label for label in box["labels"] if label[1] >= threshold), None) == expected
        assert [name for name, _ in box["retrieved"]] == list(record.names[: web.LISTED])
        assert box["best"] == box["ranked"][0][0] == record.names[int(np.argmax(record.fused))]


def test_boxes_are_found_once_and_other_words_load_nothing():
    boxes = Boxes()
    service = make_service(boxes)
    data = photo_bytes()
    service.describe(data, "a.png", "cat\ndog")
    asked = service._base.recognizer.ranker
    first = service.describe(data, "a.png", "horse\ncow")
    service.write(data, "a.png", "horse\ncow", "coco", 0.5, 0.0)
    assert service.describe(data, "a.png", "horse\ncow") == first
    assert boxes.calls == ["a.png"]
    labellers = [service._find(data, "a.png", words)[1] for words in ("cat\ndog", "horse\ncow")]
    assert all(one.recognizer.ranker is asked for one in labellers)
    assert labellers[0].recognizer.encoder is labellers[1].recognizer.encoder
    service.describe(photo_bytes(seed=1), "a.png", "horse\ncow")  # another photo of that name
    assert len(boxes.calls) == 2


def test_the_last_ones_are_remembered():
    recent, made = web._Recent(2), []
    for key in "abacab":  # c drives out b
        recent(key, lambda key=key: made.append(key))
    assert "".join(made) == "abcb"
    choosy = web._Recent(2, keeps=bool)
    assert [choosy("a", lambda value=value: value) for value in (0, 1, 2)] == [0, 1, 1]


@pytest.mark.parametrize("form", list(FORMATS))
def test_labels_to_save_are_those_above_the_thresholds(form, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    service, data = make_service(), photo_bytes()
    name, content = service.write(data, "a.png", "cat\ndog", form, 0.0, 0.5)
    assert not list(tmp_path.iterdir())  # no photo is kept
    if form == "coco":
        labels = json.loads(content)
        assert [image["file_name"] for image in labels["images"]] == ["a.png"]
        assert [a["bbox"] for a in labels["annotations"]] == [[2, 3, 18, 22], [5.25, 6.5, 22.75, 23.5]]
        third = json.loads(service.write(data, "a.png", "cat\ndog", form, 0.0, 0.0)[1])["annotations"][2]
        assert third["bbox"] == [10, 10, 50, 30]  # cut at the rim
        assert json.loads(service.write(data, "a.png", "cat\ndog", form, 1.0, 0.0)[1])["annotations"] == []
    elif form == "cvat":
        assert content.count(b"<box ") == 2
    else:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = [file for file in archive.namelist() if not file.endswith("/")]
            assert archive.testzip() is None
            assert len(files) == {"yolo": 3, "voc": 3, "label-studio": 2, "crops": 2}[form]
            if form in ("yolo", "voc"):  # the photo itself, not a link to what is gone
                folder = {"yolo": "images", "voc": "JPEGImages"}[form]
                assert archive.read(f"{form}/{folder}/a.png") == data
    assert name.split(".")[0] == FORMATS[form].place.split(".")[0]


def test_masks_are_shown_and_saved():
    class Masks(Boxes):
        def detect(self, images, paths=None):
            (found,) = super().detect(images, paths)
            masks = torch.zeros(3, *images[0].shape[:2], dtype=torch.bool)
            masks[0, 5:15, 4:16] = True
            return [replace(found, masks=masks)]

    service, data = make_service(Masks()), photo_bytes()
    outlines = [box["outline"] for box in service.describe(data, "a.png", "cat\ndog")["boxes"]]
    assert [len(outline) for outline in outlines] == [1, 0, 0]
    points = np.reshape(outlines[0][0], (-1, 2))
    np.testing.assert_array_equal([points.min(axis=0), points.max(axis=0)], [[4, 5], [16, 15]])
    first = json.loads(service.write(data, "a.png", "cat\ndog", "coco", 0.0, 0.0)[1])["annotations"][0]
    assert np.reshape(first["segmentation"], (-1, 2)).tolist() == points.tolist()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a b.jpg", "a b.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("", "photo"),
        ("..", "photo"),
        (".jpg", "jpg"),
        ("a\0b\n.png", "ab.png"),
        ("łoś" * 100 + ".jpeg", ("łoś" * 40) + ".jpeg"),
    ],
)
def test_names_of_files_stay_in_their_folder(given, expected):
    assert web._file_name(given) == expected


@contextmanager
def served(app):
    """The address of a real server."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(300)
        listener.close()


def post(address, fields, headers=()):
    """Status and content of the answer to a form; files are (name, bytes)."""
    edge, body = b"edge-of-parts", b""
    for key, value in fields.items():
        name = f'; filename="{value[0]}"'.encode() if isinstance(value, tuple) else b""
        content = value[1] if isinstance(value, tuple) else value.encode()
        body += b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (
            edge,
            key.encode(),
            name,
            content,
        )
    request = urllib.request.Request(address, body + b"--" + edge + b"--\r\n", dict(headers))
    request.add_header("Content-Type", f"multipart/form-data; boundary={edge.decode()}")
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_two_users_at_once_get_their_own_answers():
    class Meeting(Boxes):
        """Nobody's boxes are found before two are inside; never more than two are."""

        def __init__(self):
            super().__init__()
            self.barrier, self.inside, self.most, self.lock = threading.Barrier(2), 0, 0, threading.Lock()

        def detect(self, images, paths=None):
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            self.barrier.wait(300)
            with self.lock:
                self.inside -= 1
            return super().detect(images, paths)

    meeting = Meeting()
    sizes = [(60 + 2 * user, 40) for user in range(6)]
    words = [f"word {user}\nother {user}" for user in range(6)]
    with served(web.build_app(make_service(meeting), web.Limits())) as address, ThreadPoolExecutor(6) as users:
        forms = [
            {"photo": (f"{user}.png", photo_bytes(*size)), "words": words[user]} for user, size in enumerate(sizes)
        ]
        answers = list(users.map(lambda form: post(address + "labels", form), forms))
    assert meeting.most == web.AT_ONCE == 2
    alone = make_service()
    for user, (status, content) in enumerate(answers):
        expected = alone.describe(photo_bytes(*sizes[user]), f"{user}.png", words[user])
        assert status == 200
        found = json.loads(content)
        assert found.pop("seconds") > 0
        assert found == json.loads(json.dumps(expected))


def test_what_is_refused_is_said():
    good = {"photo": ("a.png", photo_bytes()), "words": "cat", "format": "coco"}
    app = web.build_app(make_service(), web.Limits(megabytes=1), hosts=("127.0.0.1",))
    with served(app) as address:

        def refused(where, status, **changed):
            fields = {key: value for key, value in {**good, **changed}.items() if value is not None}
            found, content = post(address + where, fields)
            assert found == status
            return json.loads(content)["error"]

        assert post(address + "files", good)[0] == 200
        assert "hold no word that may be written; give at least one" in refused("labels", 422, words=" \n")
        assert "'cat' is there twice" in refused("labels", 422, words="cat\ncat")
        assert "note.txt is not an image" in refused("labels", 422, photo=("note.txt", b"a note"))
        assert "it is a HEIC photo; save it as JPEG" in refused("labels", 422, photo=("a", b"\0\0\0\x18ftypheic\0\0"))
        raw = ("a.NEF", photo_bytes(kind="TIFF"))
        assert "a.NEF is a RAW photo or a video; develop it" in refused("labels", 422, photo=raw)
        large = refused("labels", 422, photo=("big.png", photo_bytes(200, 60)))
        assert "big.png is 200x60 px, 0.0 megapixels; at most 0.01 are taken. Make it smaller" in large
        assert "the photo has 1.5 MB; at most 1 MB are taken" in refused("labels", 413, photo=("a", b"0" * 1_500_000))
        assert "there is no photo in the form" in refused("labels", 400, photo="text")
        assert "there is no field 'words' in the form" in refused("labels", 400, words=None)
        assert "Part exceeded maximum size" in refused("labels", 400, words="a" * (web.WORD_BYTES + 1))
        assert "there is no format 'pdf'; known are coco" in refused("files", 422, format="pdf")
        assert "min_score must be in [0, 1], got '2'" in refused("files", 422, min_score="2")
        assert "min_box_score must be in [0, 1], got 'x'" in refused("files", 422, min_box_score="x")
        # The name of another page, made to point here.
        assert post(address + "labels", good, {"Host": "elsewhere.example"}) == (400, b"Invalid host header")
        # Sizes are looked at before anything is read.
        assert b"411 " in answer_to_head(address, "Transfer-Encoding: chunked")
        assert b"413 " in answer_to_head(address, "Content-Length: 9000000")


def answer_to_head(address, header):
    """What comes back before a body is sent."""
    with socket.create_connection(("127.0.0.1", int(address.split(":")[2].strip("/")))) as connection:
        connection.sendall(f"POST /labels HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n\r\n".encode())
        return connection.recv(1000)


SCRIPT = """
const texts = where => [...document.querySelectorAll(where)].map(e => e.textContent);
const until = async test => { while (!test()) await new Promise(done => setTimeout(done, 20)); };
const looked = async () => { await until(() => by("busy").hidden); return by("error").textContent; };
const drop = photo => {
  const dataTransfer = new DataTransfer(); dataTransfer.items.add(photo);
  by("drop").dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
};
const slide = (id, value) => { by(id).value = value; by(id).dispatchEvent(new Event("input")); };
by("find").click(); log.without = by("error").textContent;
const photo = new File([await (await fetch("example")).blob()], "my photo.jpg"), words = by("words").value;
by("words").value = " "; drop(photo); log.wordless = await looked();
by("words").value = words; by("find").click(); log.error = await looked();
log.heads = texts("#boxes summary"); log.marks = texts("#marks text"); log.said = by("said").textContent;
log.lists = texts("#boxes details:first-child .row").length;
await by("image").decode(); log.shown = by("image").naturalWidth;
by("marks").querySelector("g").dispatchEvent(new MouseEvent("click"));
log.open = by("boxes").querySelector("details").open;
slide("score", 1); log.strict = texts("#marks text"); slide("score", 0.5);
slide("box", 1); log.fewer = texts("#boxes summary").length; slide("box", 0);
let blob; URL.createObjectURL = given => { blob = given; return "data:,"; };
HTMLAnchorElement.prototype.click = function () { log.file = this.download; };
by("save").click(); await until(() => log.file); log.saved = JSON.parse(await blob.text());
by("words").value = "red drop | ringed red drop\\n! striped orange triangle"; by("find").click();
log.again = await looked();
log.others = texts("#marks text").filter(text => text);
drop(new File([new Uint8Array(2e6)], "big.jpg")); log.big = by("error").textContent;
drop(new File(["words"], "note.txt")); log.note = await looked(); log.left = texts("#boxes summary").length;
log.fetched = performance.getEntriesByType("resource").map(entry => entry.name);
"""


@pytest.fixture(scope="module")
def embedded():
    """The demo's models, as the command builds them."""
    args = web_command.parse_args(["--embedded"])
    words = web_command._first_words(args)
    labeller, _ = build_labeller(args, web_command.read_words(words.splitlines()))
    return labeller, words, shipped("demo") / "photos" / web_command.EXAMPLE


def test_in_a_real_browser(embedded):
    labeller, words, example = embedded
    service = web.LabelService(labeller, 10**6)
    app = web.build_app(service, web.Limits(megabytes=1), words=words, example=example, min_box_score=0.3)
    with served(app) as address, open_browser() as browser:
        browser.open(address)
        log = browser.run(SCRIPT)
    assert log["without"] == "Drop a photo first, or choose one."
    assert log["wordless"].startswith("Type at least one word")
    assert log["error"] == log["again"] == ""
    expected = service.describe(example.read_bytes(), "my photo.jpg", words)
    names = [next((name for name, score in box["labels"] if score >= 0.5), "") for box in expected["boxes"]]
    assert log["marks"] == names
    assert {"ringed red drop", "striped orange triangle"} <= set(names)
    assert log["shown"] == expected["wh"][0]
    for head, box in zip(log["heads"], expected["boxes"], strict=True):
        assert head.endswith(f"{box['retrieved'][0][0]} → {box['best']}")
    named = sum(map(bool, names))
    assert f"{named} of {len(names)} boxes have a label" in log["said"]
    assert (log["lists"], log["open"]) == (2 * web.LISTED, True)
    assert not any(log["strict"])
    assert log["fewer"] == 0
    assert log["file"] == "my photo-coco.json"
    assert len(log["saved"]["annotations"]) == named
    assert set(log["others"]) == {"red drop"}  # "striped orange triangle" competes and is never written
    assert log["big"] == "big.jpg has 2.0 MB; at most 1 MB are taken. Make it smaller."
    assert "note.txt is not an image" in log["note"]
    assert log["left"] == 0
    # Nothing comes from elsewhere; that the note was refused is all the browser has to say.
    assert {name for name in log["fetched"] if not name.startswith("data:")} == {
        f"{address}{name}" for name in ("example", "labels", "files")
    }
    assert all("422" in line for line in browser.said), browser.said


def test_the_command_serves_until_it_is_stopped():
    line = [sys.executable, "-m", "rar_mmdet", "web", "--embedded", "--boxes", str(PHOTOS / "boxes.json")]
    with subprocess.Popen([*line, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            said = [server.stdout.readline(), server.stdout.readline()]
            assert said[0] == "loading models ...\n"
            address = said[1].split()[1]
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(address, timeout=300) as page:
                policy = page.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "connect-src 'self'" in policy
                assert b"striped red hexagon" in page.read()  # the demo's words
            fields = {
                "words": "ringed red drop\nblue star",
                "photo": ("photo1.jpg", (PHOTOS / "photo1.jpg").read_bytes()),
            }
            boxes = json.loads(post(f"{address}labels", fields)[1])["boxes"]
            assert [89, 17, 129, 87] in [[round(value) for value in box["box"]] for box in boxes]
            assert post(f"{address}labels", {**fields, "photo": ("other.jpg", fields["photo"][1])})[0] == 200
            with pytest.raises(urllib.error.HTTPError, match="405"):
                urllib.request.urlopen(f"{address}labels", timeout=300)
        finally:
            server.send_signal(signal.SIGINT)
            _, error = server.communicate(timeout=300)
    assert server.returncode == 130
    assert error.splitlines()[-1] == "stopped"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--words", "nowhere.txt"], "--words nowhere.txt does not exist"),
        (["--words", "words.yaml"], "the page begins with words as text; give a .txt file"),
        (["--max-mb", "0"], "--max-mb must be above 0"),
        (["--max-megapixels", "900"], "--max-megapixels in (0, 178], got 20 and 900"),
        (["--port", "99999"], "--port 99999 cannot be had: "),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid --port 7860 cannot be had: "),
    ],
)
def test_wrong_options_are_refused(options, said, capsys):
    assert rar_mmdet(["web", "--embedded", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_port_in_use_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        assert rar_mmdet(["web", "--embedded", "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"--port {port} cannot be had" in error
    assert "Does another server run there? Give another --port" in error


def test_without_the_extra_it_says_what_to_type(monkeypatch, capsys):
    monkeypatch.setattr(web_command, "find_spec", lambda name: None)
    assert rar_mmdet(["web", "--embedded"]) == 2
    assert "pip install starlette uvicorn python-multipart" in capsys.readouterr().err
