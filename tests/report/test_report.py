"""The page of a run: numbers by hand, odd runs, names that are markup, and a real browser."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.errors import RecordFileError
from rar_mmdet.records import RegionRecord, write_records
from rar_mmdet.report.command import write_report
from rar_mmdet.report.figures import figures_of
from rar_mmdet.report.panels import choose
from rar_mmdet.report.ranking import change_by, confusions, losses, margin_groups, size_groups
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
    assert choose(run, 3)["at random"].tolist() == chosen["at random"].tolist()


def test_figures_hold_the_numbers(folder, tmp_path):
    figures = {figure.name: figure for figure in figures_of([read_run(folder)])}
    assert set(figures) == {"recall", "reliability", "risk_coverage", "gain_by_margin"}
    recall = {line.label: line.y for line in figures["recall"].lines}
    assert recall["retrieval"][:4] == pytest.approx((2 / 6, 4 / 6, 5 / 6, 5 / 6))
    assert recall["fused"][:3] == pytest.approx((2 / 6, 4 / 6, 5 / 6))
    write_report([read_run(folder)], tmp_path / "page.html")
    with open(tmp_path / "page" / "recall.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["line", "k, names", "share of objects"]
    assert [float(row[2]) for row in rows[1:5]] == pytest.approx(recall["retrieval"][:4])
    assert Image.open(tmp_path / "page" / "recall.png").size[0] > 300


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


PROBE = """
<script>
const head = [...document.querySelectorAll("th[data-sort]")].at(-1), body = head.closest("table").tBodies[0];
const names = () => [...body.rows].filter(row => !row.hidden).map(row => row.cells[0].textContent);
head.click(); head.click();
const sorted = [...body.rows].map(row => row.cells[2].textContent);
const input = document.querySelector("input[type=search]");
input.value = "FISH"; input.dispatchEvent(new Event("input"));
document.body.dataset.probe = JSON.stringify({sorted, left: names()});
</script>
"""


def test_in_a_real_browser(folder, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    extra = RegionRecord(**{**vars(RECORDS[3]), "image": "h"})  # the pair of fish occurs twice
    with (folder / "regions.jsonl").open("a") as stream:
        stream.write(extra.to_json() + "\n")
    page = write_report([read_run(folder)], tmp_path / "page.html")
    page.write_text(page.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}/b"]
    done = subprocess.run(
        [browser, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said
    parsed = Text()
    parsed.feed(done.stdout)
    (probe,) = [attributes["data-probe"] for tag, attributes in parsed.tags if "data-probe" in attributes]
    assert json.loads(probe) == {"sorted": ["2", "1", "1", "1"], "left": ["fish"]}
