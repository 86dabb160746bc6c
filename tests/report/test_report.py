"""The page of a run: numbers by hand, odd runs, names that are markup, and a real browser."""

import csv
import importlib.util
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import open_browser
from PIL import Image

from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.errors import RecordFileError
from rar_mmdet.records import RegionRecord, write_records
from rar_mmdet.report.command import write_report
from rar_mmdet.report.confusions import ClassRow, classes_of, confusions, read_name_tree, roll_up
from rar_mmdet.report.figures import figures_of
from rar_mmdet.report.panels import choose
from rar_mmdet.report.ranking import change_by, losses, margin_groups, order_effect, size_groups
from rar_mmdet.report.runs import read_run
from rar_mmdet.testing import make_image

NAMES = ("<script>alert(1)</script>", "cat & dog", "fish", "$x$ owl")


def record(image, ids, probs, fused=None, order=(), truth=None, **more):
    ranked = {"status": "ok", "order": order} if order else {"status": "skipped"}
    return RegionRecord(
        image=image,
        region=0,
        box_xyxy=more.pop("box", (4.0, 4.0, 24.0, 24.0)),
        box_score=1.0,
        category_ids=tuple(ids),
        names=tuple(NAMES[i] for i in ids),
        probs=tuple(probs),
        fused=tuple(fused or probs),
        truth=truth,
        truth_name=None if truth is None else NAMES[truth],
        **ranked,
        **more,
    )


RECORDS = [
    # Retrieval right, ranking agrees.
    record("a", (0, 1, 2), (0.6, 0.3, 0.1), (0.8, 0.1, 0.1), (0, 1), truth=0),
    # Ranking makes it right.
    record("b", (0, 1, 2), (0.5, 0.4, 0.1), (0.2, 0.7, 0.1), (1, 0), truth=1, log_probs=(-2.0, -0.5)),
    # Ranking makes it wrong.
    record("c", (0, 1, 2), (0.7, 0.2, 0.1), (0.3, 0.6, 0.1), (1, 0), truth=0, box=(0.0, 0.0, 60.0, 60.0)),
    # The truth was not offered.
    record("d", (0, 1, 2), (0.5, 0.3, 0.2), (0.6, 0.2, 0.2), (0, 1), truth=2),
    # The ranker is right, fusion is not.
    record("e", (0, 1, 2), (0.9, 0.05, 0.05), (0.7, 0.25, 0.05), (1, 0), truth=1, box=(0.0, 0.0, 100.0, 100.0)),
    # The truth is not in the list at all.
    record("f", (0, 1, 2), (0.4, 0.35, 0.25), (0.4, 0.35, 0.25), (0, 1), truth=3),
    # Nothing is annotated there.
    record("g", (0, 1, 2), (0.35, 0.33, 0.32), (0.35, 0.33, 0.32), (0, 1)),
]


@pytest.fixture
def folder(tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(make_image(100, 100, seed=1)).save(photo)
    run = tmp_path / "run"
    run.mkdir()
    with_file = [RegionRecord(**{**vars(r), "file": str(photo)}) for r in RECORDS]
    write_records(run / "regions.jsonl", with_file)
    metrics = {"lvis/bbox_AP": 0.5, "recognition/top1": 0.25, "recognition/top1_r": 0.125, "recognition/objects": 6.0}
    (run / "summary.json").write_text(json.dumps({"config": "x.py", "num_images": 7, "metrics": metrics}))
    return run


def test_the_numbers_by_hand(folder):
    run = read_run(folder)
    assert run.has_truth.tolist() == [True] * 6 + [False]
    assert run.retrieval.correct[:6].tolist() == [True, False, True, False, False, False]
    assert run.ranker.correct[:6].tolist() == [True, True, False, False, True, False]
    assert run.fused.correct[:6].tolist() == [True, True, False, False, False, False]
    assert losses(run) == {"right": 2, "not retrieved": 2, "ranked wrongly": 1, "fusion": 1}
    (everything,) = change_by(run, {"all": np.ones(7, bool)})
    assert (everything.count, everything.before, everything.after) == (6, 2 / 6, 2 / 6)
    assert (everything.improved, everything.harmed) == (1 / 6, 1 / 6)
    assert [(c.group, c.count) for c in change_by(run, size_groups(run))] == [("small", 4), ("medium", 1), ("large", 1)]
    assert sum(members.sum() for members in margin_groups(run).values()) == 6
    assert run.ranker.confidence[1] == pytest.approx(np.exp(-0.5) / (np.exp(-0.5) + np.exp(-2)))
    pairs = confusions(run)
    assert [(p["truth"], p["named"], p["count"], p["row"]) for p in pairs] == [
        (0, 1, 1, 2), (1, 0, 1, 4), (2, 0, 1, 3), (3, 0, 1, 5)
    ]  # fmt: skip
    chosen = choose(run, 3)
    assert chosen["improved most"].tolist() == [1]
    assert chosen["harmed most"].tolist() == [2]
    assert chosen["surest where nothing is annotated"].tolist() == [6]
    classes = {row.name: row for row in classes_of(run)}
    assert classes[NAMES[3]] == ClassRow(NAMES[3], 1, 0.0, 0.0, NAMES[0], 1)
    assert classes[NAMES[0]] == ClassRow(NAMES[0], 2, 1.0, 0.5, NAMES[1], 1)
    assert choose(run, 3)["at random"].tolist() == chosen["at random"].tolist()


def test_figures_hold_the_numbers(folder, tmp_path):
    figures = {figure.name: figure for figure in figures_of([read_run(folder)])}
    assert set(figures) == {"recall", "reliability", "risk_coverage", "none_of_these", "gain_by_margin"}
    recall = {line.label: line.y for line in figures["recall"].lines}
    assert recall["retrieval"][:4] == pytest.approx((2 / 6, 4 / 6, 5 / 6, 5 / 6))
    assert recall["fused"][:3] == pytest.approx((2 / 6, 4 / 6, 5 / 6))
    write_report([read_run(folder)], tmp_path / "page.html")
    with open(tmp_path / "page" / "recall.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["line", "k, names", "share of objects"]
    assert [float(row[2]) for row in rows[1:5]] == pytest.approx(recall["retrieval"][:4])
    assert Image.open(tmp_path / "page" / "recall.png").size[0] > 300


def make_run(folder, records, **summary):
    folder.mkdir(parents=True)
    write_records(folder / "regions.jsonl", records)
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_what_the_order_of_the_prompt_does(tmp_path):
    def asked(truth, preferred, order):
        return record("a", (0, 1, 2), (0.5, 0.3, 0.2), order=order, truth=truth, preferred=preferred)

    records = [
        asked(1, (1, 1, 1), (1, 0, 2)),  # all agree, and are right
        asked(0, (0, 1, 1), (1, 0, 2)),  # they do not, and their mean is wrong
        asked(2, (0, 2, 2), (2, 0, 1)),  # they do not, and it is right
        asked(None, (0, 0, 0), (0, 1, 2)),
        record("b", (0, 1), (0.9, 0.1), truth=0),  # nobody was asked
    ]
    run = read_run(make_run(tmp_path / "run", records))
    effect = order_effect(run)
    assert (effect.count, effect.agree, effect.right_agreed, effect.right_disputed) == (3, 1 / 3, 1.0, 0.5)
    assert effect.right == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert effect.first == pytest.approx((2 / 3, 0, 0))
    assert effect.together == pytest.approx(2 / 3)
    lines = {
        line.label: line.y for figure in figures_of([run]) for line in figure.lines if figure.name == "order_effect"
    }
    assert lines == {"right": effect.right, "keeps retrieval's first name": effect.first}
    page = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "What the order of the prompt does" in page
    assert order_effect(read_run(make_run(tmp_path / "other", RECORDS))) is None


def settings(**more):
    return {"protocol": {"recognizers": {"model.recognizer": {"encoder": {"type": "E"}, **more}}}}


def test_runs_that_differ_in_one_setting_make_a_figure_of_it(tmp_path):
    def run(name, records, **more):
        return read_run(make_run(tmp_path / name, records, **more))

    fixed = [
        run(f"s{factor}", RECORDS, **settings(cropper={"scale": {"type": "FixedScale", "factor": factor}, "size": 8}),
            metrics={"lvis/bbox_AP": factor / 10})
        for factor in (2.0, 1.0)
    ]  # fmt: skip
    other = run("s3", RECORDS, **settings(cropper={"scale": {"type": "FixedScale", "factor": 3.0}, "size": 9}))
    adaptive = run("area", RECORDS, **settings(cropper={"scale": {"type": "AreaScale"}, "size": 8}))
    figures = {figure.name: figure for figure in figures_of([*fixed, other, adaptive])}
    lines = {line.label: (line.x, line.y) for line in figures["crop_scale"].lines}
    assert set(lines) == {"small", "medium", "large", "all", "AP"}
    assert lines["all"] == ((1.0, 2.0), pytest.approx((2 / 6, 2 / 6)))
    assert lines["AP"] == ((1.0, 2.0), (0.1, 0.2))
    assert "ranker_k" not in figures

    three = [RegionRecord(**{**vars(r), "order": (*r.order, 2)}) for r in RECORDS]
    by_k = [
        run("k3", three, **settings(num_candidates=3, ranker={"type": "R", "cache": "k3.sqlite"})),
        run("k2", RECORDS, **settings(ranker={"type": "R", "cache": "k2.sqlite"})),
    ]
    lines = {line.label: (line.x, line.y) for f in figures_of(by_k) if f.name == "ranker_k" for line in f.lines}
    assert lines["ranker"] == ((2, 3), pytest.approx((3 / 6, 3 / 6)))
    assert lines["fused"] == ((2, 3), pytest.approx((2 / 6, 2 / 6)))


def test_the_protocol_says_what_was_left_to_defaults(tmp_path):
    used = {"temperature": 0.01, "emission": "TopPairs()"}
    run = read_run(
        make_run(tmp_path / "run", RECORDS, protocol={"boxes": "annotated", "used": [used], "device": "a card"})
    )
    page = Text()
    page.feed(write_report([run], tmp_path / "page.html", panels=0).read_text(encoding="utf-8"))
    at = page.cells.index("boxes")
    said = dict(zip(page.cells[at:][::2], page.cells[at:][1::2], strict=False))
    assert (said["boxes"], said["temperature"], said["emission"], said["device"]) == (
        "annotated", "0.01", "TopPairs()", "a card"
    )  # fmt: skip


def test_errors_of_boxes_and_frequencies_come_from_the_numbers_beside_the_records(tmp_path):
    metrics = {f"recognition/{part}_r": 0.25 for part in ("retrieval_top1", "top1", "improved", "harmed", "asked")}
    folder = make_run(tmp_path / "run", RECORDS, metrics=metrics)
    kinds = ("cls", "loc", "both", "dupe", "bkg", "miss", "fp", "fn")
    (folder / "scores.json").write_text(json.dumps({f"bbox_dAP_{kind}": i / 8 for i, kind in enumerate(kinds)}))
    run = read_run(folder)
    (figure,) = [figure for figure in figures_of([run]) if figure.name == "box_errors"]
    assert figure.lines[0].y == tuple(i / 8 for i in range(8))
    page = Text()
    page.feed(write_report([run], tmp_path / "page.html").read_text(encoding="utf-8"))
    rare = page.cells.index("rare")
    assert page.cells[rare : rare + 7] == ["rare", *["25.0"] * 4, "50.0", "25.0"]
    assert (tmp_path / "page" / "box_errors.png").is_file()


def test_none_of_these_by_hand(tmp_path):
    records = [
        record("a", (0, 1), (0.9, 0.1), order=(0, 1), truth=0, presence=0.9),
        record("b", (0, 1), (0.6, 0.4), order=(0, 1), truth=1, presence=0.8),
        record("c", (0, 1), (0.7, 0.3), order=(0, 1), presence=0.2),
        record("d", (0, 1), (0.5, 0.5), order=(0, 1), presence=0.1),
    ]
    page = Text()
    page.feed(write_report([read_run(make_run(tmp_path / "r", records))], tmp_path / "p.html").read_text("utf-8"))
    at = page.cells.index("ranker, any name")
    assert page.cells[at + 1 : at + 6] == ["1.000", "0.0", "0.85", "0.15", "2"]
    at = page.cells.index("retrieval", page.cells.index("regions without an object"))
    assert page.cells[at + 1 : at + 6] == ["0.750", "50.0", "0.75", "0.60", "2"]


TREE = {"cat": "pet", "dog": "pet", "puppy": "dog", "pet": "animal", "fish": "animal", "car": None}


@pytest.fixture
def animals(tmp_path):
    """Wrong names of every relation, in the words of `TREE`, where "pet" and "animal" are no categories."""
    names = ("cat", "dog", "puppy", "fish", "car")

    def named(truth, label):
        return RegionRecord(
            image="a", region=0, box_xyxy=(0.0, 0.0, 9.0, 9.0), box_score=1.0, category_ids=(label,),
            names=(names[label],), probs=(0.9,), fused=(0.9,), status="skipped", truth=truth, truth_name=names[truth],
        )  # fmt: skip

    pairs = [(0, 1), (0, 1), (1, 2), (2, 1), (2, 3), (0, 4), (0, 0)]
    (tmp_path / "tree.json").write_text(json.dumps(TREE))
    (tmp_path / "words.txt").write_text("\n".join(names))
    categories = [{"id": 10 + label, "name": name} for label, name in enumerate(names)]
    (tmp_path / "annotations.json").write_text(json.dumps({"categories": categories}))
    by_id = {"categoryid2treeid": {"10": 1, "11": 2, "12": 3, "13": 4}, "ancestor2descendant": {"2": [3]}}
    (tmp_path / "v3det.json").write_text(json.dumps(by_id))
    return make_run(tmp_path / "animals", [named(*pair) for pair in pairs], **settings(vocabulary=list(names)))


def test_wrong_names_along_a_tree(animals, tmp_path):
    run = read_run(animals)
    rolled = roll_up(run, read_name_tree(tmp_path / "tree.json", tmp_path / "words.txt"))
    assert rolled.relations == {
        "more general": 1, "more special": 1, "under one parent": 2, "further apart": 1, "nothing in common": 1
    }  # fmt: skip
    assert [(m.name, m.mistakes, m.objects, m.pair, m.times) for m in rolled.meetings] == [
        ("dog", 2, 3, ("dog", "puppy"), 1),
        ("pet", 2, 7, ("cat", "dog"), 2),
        ("animal", 1, 7, ("puppy", "fish"), 1),
    ]
    official = roll_up(run, read_name_tree(tmp_path / "v3det.json", tmp_path / "annotations.json"))
    assert official.relations == {
        "more general": 1, "more special": 1, "under one parent": 0, "further apart": 0, "nothing in common": 4
    }  # fmt: skip


def test_a_tree_on_the_page(animals, tmp_path, capsys):
    out = tmp_path / "page.html"
    command = ["report", str(animals), "--out", str(out), "--tree", str(tmp_path / "tree.json")]
    assert rar_mmdet([*command, "--csv"]) == 0
    page = Text()
    page.feed(out.read_text(encoding="utf-8"))
    at = page.cells.index("under one parent")
    assert page.cells[at + 1] == "2 (33.3 %)"
    with open(tmp_path / "page" / "confusions_1.csv", newline="") as stream:
        assert [row["count"] for row in csv.DictReader(stream)] == ["2", "1", "1", "1", "1"]
    with open(tmp_path / "page" / "classes_1.csv", newline="") as stream:
        assert next(csv.DictReader(stream)) == {
            "name": "cat", "objects": "4", "before": "0.25", "after": "0.25", "taken_for": "dog", "times": "2"
        }  # fmt: skip
    (animals / "summary.json").write_text("{}")
    assert rar_mmdet(command) == 2
    assert "--tree needs the names in label order" in capsys.readouterr().err
    (tmp_path / "tree.json").write_text(json.dumps({"cta": "pet"}))
    assert rar_mmdet([*command, "--vocabulary", str(tmp_path / "words.txt")]) == 2
    assert "'cta' is no category id or name" in capsys.readouterr().err


def test_a_script_for_fiftyone(folder, tmp_path):
    out = tmp_path / "page.html"
    assert rar_mmdet(["report", str(folder), "--out", str(out), "--fiftyone"]) == 0
    spec = importlib.util.spec_from_file_location("script", tmp_path / "page" / "load_in_fiftyone.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert dict(script.RUNS) == {"run": str(folder / "regions.jsonl")}
    ((photo, regions),) = script.regions_by_photo(script.RUNS["run"]).items()
    assert script.upright_wh(photo) == (100, 100)
    changes = [dict(script.labels_of(region, (100, 100))).get("named")["change"] for region in regions]
    assert changes == ["right", "improved", "harmed", "wrong", "wrong", "wrong", None]
    found = dict(script.labels_of(regions[1], (100, 200)))
    assert found["ground_truth"] == {"label": NAMES[1], "bounding_box": [0.04, 0.02, 0.2, 0.1], "region": 0}
    assert (found["retrieval"]["label"], found["named"]["label"]) == NAMES[:2]
    assert found["named"]["confidence"] == 0.7
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert script.upright_wh(tmp_path / "turned.jpg") == (20, 30)


class Text(HTMLParser):
    """Cells of tables, and the tags that occur."""

    def __init__(self):
        super().__init__()
        self.cells, self.tags, self._in = [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self._in = True
            self.cells.append("")

    def handle_endtag(self, tag):
        self._in = self._in and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in:
            self.cells[-1] += data


def test_the_page_says_what_the_numbers_are(folder, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert rar_mmdet(["report", str(folder), "--out", str(out), "--csv"]) == 0
    assert f"report    {out}" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    page = Text()
    page.feed(text)
    following = dict(zip(page.cells[-2::-1], page.cells[:0:-1], strict=True))  # what follows a cell first
    assert following["lvis/bbox_AP"] == "0.5000"
    assert following["recognition/objects"] == "6"
    assert following["fused"] == "33.3"
    assert following["not retrieved"] == "2 (33.3 %)"
    assert "0.1250" in page.cells
    # A name that is markup stays text; nothing is fetched from elsewhere.
    assert "<script>alert" not in text
    assert NAMES[0] in page.cells
    assert [tag for tag, _ in page.tags].count("script") == 1
    for _, attributes in page.tags:
        for key in ("src", "href"):
            assert attributes.get(key, "data:").startswith("data:")
    with open(tmp_path / "page" / "regions_1.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["fused_right"] for row in rows] == ["1", "1", "0", "0", "0", "0", "0"]
    assert rows[1]["named"] == NAMES[1]


def test_two_runs_side_by_side(folder, tmp_path):
    other = tmp_path / "deep" / "run"
    other.mkdir(parents=True)
    plain = [RegionRecord(**{**vars(r), "fused": r.probs, "status": "skipped", "order": ()}) for r in RECORDS]
    write_records(other / "regions.jsonl", plain)
    assert rar_mmdet(["report", str(folder), str(other), "--out", str(tmp_path / "two.html")]) == 0
    page = Text()
    page.feed((tmp_path / "two.html").read_text(encoding="utf-8"))
    names = [cell for cell in page.cells if "shared objects" in cell]
    assert len(names) == 1
    assert re.fullmatch(r"deep/run against .*/run \(6 shared objects\)", names[0])
    start = page.cells.index(names[0])
    assert page.cells[start + 1 : start + 5] == ["+0.0", "-50.0 to +50.0", "1", "1"]


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([], id="no region"),
        pytest.param(RECORDS[:1], id="one region"),
        pytest.param([RECORDS[6]], id="no truth"),
        pytest.param([RegionRecord(**{**vars(r), "status": "skipped", "order": ()}) for r in RECORDS], id="no ranker"),
        pytest.param([RegionRecord(**{**vars(r), "file": "gone.jpg"}) for r in RECORDS], id="photos are gone"),
        pytest.param([RegionRecord(**{**vars(r), "fused": (7.0, 3.0, 1.0)}) for r in RECORDS], id="no probabilities"),
    ],
)
def test_odd_runs_have_a_page(records, tmp_path):
    write_records(tmp_path / "odd.jsonl", records)
    page = write_report([read_run(tmp_path / "odd.jsonl")], tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"odd: {len(records)} regions" in page
    assert "nan" not in page
    figures = tmp_path / "page"
    empty = [path.name for path in figures.glob("*.csv") if len(path.read_text(encoding="utf-8").splitlines()) < 2]
    assert not empty
    assert ("there is nothing to count" in page) == all(one.truth is None for one in records)
    assert ("at random" in page) == bool(records)
    assert ('<div class="soft">ranked</div>' in page) == any(one.has_opinion for one in records)
    if records and records[0].file:
        assert "1 photos could not be read" in page


def test_what_a_user_can_get_wrong(folder, tmp_path, capsys):
    assert rar_mmdet(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere holds no regions.jsonl: give the folder of a run of tools/test.py" in capsys.readouterr().err
    (folder / "summary.json").write_text("{")
    with pytest.raises(RecordFileError, match="summary.json is not JSON: .* Run the test again"):
        read_run(folder)
    (folder / "summary.json").write_text("[]")
    with pytest.raises(RecordFileError, match="must be one JSON object, got a list"):
        read_run(folder)
    (folder / "summary.json").unlink()
    (folder / "regions.jsonl").write_text("{}\n")
    with pytest.raises(RecordFileError, match=r"regions.jsonl, line 1: not a region record"):
        read_run(folder)
    write_records(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordFileError, match="cannot be written"):
        write_report([read_run(tmp_path / "a.jsonl")], tmp_path / "file" / "page.html")


def test_in_a_real_browser(folder, tmp_path):
    extra = RegionRecord(**{**vars(RECORDS[3]), "image": "h"})  # the pair of fish occurs twice
    with (folder / "regions.jsonl").open("a") as stream:
        stream.write(extra.to_json() + "\n")
    page = write_report([read_run(folder)], tmp_path / "page.html")
    script = """
    const head = [...document.querySelectorAll("th[data-sort]")].at(-1), body = head.closest("table").tBodies[0];
    const names = () => [...body.rows].filter(row => !row.hidden).map(row => row.cells[0].textContent);
    head.click(); head.click();
    log.sorted = [...body.rows].map(row => row.cells[2].textContent);
    const input = [...document.querySelectorAll("input[type=search]")].at(-1);
    input.value = "FISH"; input.dispatchEvent(new Event("input")); log.left = names();
    const classes = document.querySelector("input[type=search]");
    classes.value = "owl"; classes.dispatchEvent(new Event("input"));
    const rows = classes.closest("p").nextElementSibling.querySelector("table").tBodies[0].rows;
    log.owls = [...rows].filter(row => !row.hidden).map(row => row.cells[0].textContent)
    """
    with open_browser() as browser:
        browser.open(page.as_uri())
        log = browser.run(script)
    assert not browser.said
    assert log == {"sorted": ["2", "1", "1", "1"], "left": ["fish"], "owls": ["$x$ owl"]}
