"""The review page: its order, and what it does in a real Chromium (skipped where there is none)."""

import json

import pytest
import torch
from browser import open_browser
from labelling_worlds import labeller, write_photos
from PIL import Image

from rar_mmdet.detectors import Detected
from rar_mmdet.errors import RecordFileError
from rar_mmdet.labelling import LabelRun
from rar_mmdet.labelling.review import review_order, write_review
from rar_mmdet.testing import make_image

WORDS = ["red & <blue>", 'say "cat"', "poodle", "łoś", "boxer", "</script>"]


@pytest.fixture
def run(tmp_path):
    made = LabelRun(labeller(words=WORDS), write_photos(tmp_path / "photos"), tmp_path / "out")
    made.run()
    return made


def key(entry):
    return entry[1].name, entry[2].region


def test_the_page_has_the_doubtful_first(run, tmp_path):
    order = [decision.doubt for decision, _, _ in review_order(run)]
    assert order == sorted(order, reverse=True)
    assert [key(e) for e in review_order(run, 4)] == [key(e) for e in review_order(run)[:4]]
    assert write_review(run, tmp_path / "out" / "review.html", most=4) == 4
    with pytest.raises(RecordFileError, match=r"review page .* cannot be written: No such file"):
        write_review(run, tmp_path / "nowhere" / "review.html")


def in_browser(run, script, before=""):
    """What a script writes into `log` once the page is there."""
    page = run.out / "review.html"
    write_review(run, page)
    press = 'const press = key => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));'
    with open_browser() as browser:
        browser.open(page.as_uri(), before)
        log = browser.run(press + script)
    assert not browser.said
    return log


def test_every_key(run):
    script = """
    log.places = []; const step = key => { press(key); log.places.push(at); };
    for (const key of ["1", "2", "3", "4", "5", "0", "Enter"]) step(key);
    log.count = by("count").textContent; log.bar = [by("progress").value, by("progress").max];
    step("u"); step("u"); log.after = by("count").textContent;
    for (const key of ["ArrowRight", "ArrowLeft", "x", "9"]) step(key);
    log.corrections = corrections().corrections
    """
    log = in_browser(run, script)
    queue = review_order(run)
    assert log["places"] == [1, 2, 3, 4, 5, 6, 7, 6, 5, 6, 5, 5, 5]
    assert log["count"] == "7 of 9 looked at"
    assert log["bar"] == [7, 9]
    assert log["after"] == "5 of 9 looked at"
    chosen = [decision.best[place][0] for place, (decision, _, _) in enumerate(queue[:5])]
    expected = {key(entry): WORDS[row] for entry, row in zip(queue, chosen, strict=False)}
    assert {(c["photo"], c["region"]): c["class"] for c in log["corrections"]} == expected


def test_filter_batch_and_undo(run):
    script = """
    press("0");
    const filter = by("filter"), last = items[shown.at(-1)].label;
    filter.value = String(last); filter.focus(); filter.dispatchEvent(new Event("change"));
    log.free = document.activeElement !== filter;
    log.same = shown.every(row => items[row].label === last); log.left = shown.length;
    by("accept").click(); log.batch = by("count").textContent; log.kept = document.querySelectorAll(".kept").length;
    press("u"); log.undone = by("count").textContent;
    by("accept").click(); filter.value = ""; filter.dispatchEvent(new Event("change")); log.all = shown.length;
    log.corrections = corrections().corrections
    """
    log = in_browser(run, script)
    assert log["free"]  # keys choose again, not the list of classes
    assert log["same"]
    assert log["kept"] == log["left"] > 0
    assert log["batch"] == f"{1 + log['left']} of 9 looked at"
    assert log["undone"] == "1 of 9 looked at"
    assert log["all"] == 9
    queue = {key(entry): entry[0] for entry in review_order(run)}
    found = {(c["photo"], c["region"]): c["class"] for c in log["corrections"]}
    assert found.pop(key(review_order(run)[0])) is None
    assert all(name == WORDS[queue[one].class_id] for one, name in found.items())


def test_the_saved_file_is_what_apply_reads(run):
    script = """
    let blob; URL.createObjectURL = given => { blob = given; return "data:,"; };
    let name; HTMLAnchorElement.prototype.click = function () { name = this.download; };
    press("2"); press("0"); by("save").click(); log.name = name; log.text = await blob.text();
    log.fetched = performance.getEntriesByType("resource").map(e => e.name)
    """
    log = in_browser(run, script)
    assert log["name"] == "corrections.json"
    assert all(name.startswith(("file:", "data:")) for name in log["fetched"])
    (run.out / "corrections.json").write_text(log["text"], encoding="utf-8")
    assert run.write(["coco"])[1]["corrected"] == 2


def test_photo_box_and_bars(run):
    script = """
    /* until the whole photo is there */
    while (!document.querySelector("#photo i")) await new Promise(done => setTimeout(done, 20));
    const image = document.querySelector("#photo img"), box = document.querySelector("#photo i");
    log.photo = [image.naturalWidth, image.naturalHeight];
    log.box = ["left", "top", "width", "height"].map(side => parseFloat(box.style[side]));
    log.bars = [...document.querySelectorAll(".choice i")].map(bar => parseFloat(bar.style.width));
    const crop = new Image(); crop.src = items[0].crop; await crop.decode(); log.crop = crop.naturalWidth
    """
    log = in_browser(run, script)
    decision, state, record = review_order(run)[0]
    assert log["photo"] == [state.width, state.height]
    x1, y1, x2, y2 = record.box_xyxy
    expected = [x1 / state.width, y1 / state.height, (x2 - x1) / state.width, (y2 - y1) / state.height]
    assert log["box"] == pytest.approx([100 * v for v in expected], abs=0.2)
    assert log["bars"][:-1] == pytest.approx([100 * score for _, score in decision.best[:5]], abs=0.1)
    assert log["crop"] > 0


def test_choices_stay_with_their_boxes_when_the_page_is_made_anew(run):
    kept = key(review_order(run)[-1])
    write_review(run, run.out / "review.html")
    content = (run.out / "review.html").read_text(encoding="utf-8")
    place = content.split('"key":"')[1].split('"')[0]
    said = json.dumps([[f"{kept[0]}#{kept[1]}", 3], ["gone.jpg#0", 1]])
    log = in_browser(
        run,
        "log.corrections = corrections().corrections",
        f"localStorage['rar-mmdet review {place}'] = '{said}'",
    )
    assert log["corrections"] == [{"photo": kept[0], "region": kept[1], "class": WORDS[3]}]


class Many:
    """500 boxes in every photo."""

    def detect(self, images, paths=None):
        corners = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 40
        return [Detected(torch.cat([corners, corners + 12], dim=1), torch.linspace(1, 0.3, 500)) for _ in images]


def test_five_thousand_boxes_are_usable(tmp_path):
    (tmp_path / "photos").mkdir()
    for seed in range(10):
        Image.fromarray(make_image(60, 60, seed=seed)).save(tmp_path / "photos" / f"{seed}.png")
    run = LabelRun(labeller(Many(), words=WORDS), tmp_path / "photos", tmp_path / "out")
    run.run()
    script = """
    const observer = new MutationObserver(() => {});
    observer.observe(document.body, {childList: true, subtree: true});
    const count = records => records.reduce((sum, record) => sum + record.addedNodes.length, 0);
    const drawn = work => { work(); return count(observer.takeRecords()); };
    const first = by("list").children[0].getBoundingClientRect(); log.first = [first.width, first.height];
    log.boxes = items.length; log.drawn = by("list").children.length;
    log.keys = [...Array(100).keys()].map(i => drawn(() => press(String(1 + i % 5))));
    const choose = value => { by("filter").value = value; by("filter").dispatchEvent(new Event("change")); };
    log.filter = drawn(() => choose(by("filter").options[1].value)); choose("");
    log.end = drawn(() => go(items.length - 1)); log.accept = drawn(() => by("accept").click());
    log.count = by("count").textContent; log.undo = drawn(() => press("u"))
    """
    log = in_browser(run, script)
    assert log["boxes"] == 5000
    assert log["first"][0] == pytest.approx(log["first"][1], rel=0.1)  # not pressed flat by the many
    assert log["drawn"] < 1000  # the rest is drawn when it is scrolled to
    assert log["count"] == "5000 of 5000 looked at"
    # Elements drawn: what a key costs does not grow with the boxes, and no act draws a box twice.
    assert max(log["keys"] + [log["undo"]]) < 100
    assert max(log["filter"], log["end"], log["accept"]) < 5000 + 100
    assert (run.out / "review.html").stat().st_size < 30e6
