"""Tables of whole photos, found names, crops and fine-tuning: the commands themselves, on miniatures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rar_mmdet.models.testing import write_lvis_world
from rar_mmdet.tables import command
from rar_mmdet.tables.definitions import read_definitions
from rar_mmdet.tables.jobs import look
from rar_mmdet.tables.kinds import plan
from rar_mmdet.tables.rows import Options, sheet_of
from rar_mmdet.tables.sheet import OURS
from rar_mmdet.testing import make_image

ROOT = Path(__file__).parents[2]
CLASSES = ("grey wolf", "oak", "red fox")
CONFIG = """
dataset = dict(type="folders", root={root!r})
encoder = dict(type="rar_mmdet.testing.FakeEncoder")
ranker = dict(type="rar_mmdet.testing.FakeRanker")
num_candidates = 2
names = dict(sentence_encoder="encoder")
"""
SETS = ("dtd", "raf_db")  # stand-ins of these names


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Configs of two sets, photos of three classes alike within a class."""
    root = tmp_path_factory.mktemp("photo_tables")
    (root / "configs" / "classification").mkdir(parents=True)
    for number, name in enumerate(SETS):
        for label, class_name in enumerate(CLASSES):
            for part, count in (("train", 4), ("val", 1), ("test", 5)):
                folder = root / name / part / class_name
                folder.mkdir(parents=True)
                for i in range(count):
                    noise = np.random.default_rng([number, label, i, len(part)]).normal(0, 60, (32, 40, 3))
                    photo = np.clip(make_image(32, 40, seed=label) + noise, 0, 255).astype(np.uint8)
                    Image.fromarray(photo).save(folder / f"{i}.png")
        config = root / "configs" / "classification" / f"{name}.py"
        config.write_text(CONFIG.format(root=str(root / name)), encoding="utf-8")
    return root


def options_of(root, **changes):
    return Options(configs=root / "configs", work_dirs=root / "work_dirs", seeds=(1, 2), **changes)


def of_two_sets(name, sets=SETS):
    definition = read_definitions()[name]
    return replace(definition, settings={**definition.settings, "sets": sets})


@pytest.fixture(scope="module")
def few_shot(root, in_this_process):
    """Tables 2 and 8 on the two sets."""
    definition = of_two_sets("few-shot")
    planned = plan(definition, options_of(root, shots=("1", "2", "train")))
    start = in_this_process()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAR_MMDET_CACHE", str(root / "cache"))
        patch.chdir(root)
        sheet, looks = command.make_table(definition, planned, dry=False, on_cpu=True, start=start)
    return definition, planned, sheet, looks, start


def test_a_set_has_one_run_for_all_rows_without_a_ranker_and_one_with_it(few_shot):
    _, planned, sheet, _, start = few_shot
    assert [job.name for job in planned.jobs] == [
        *("dtd-retrieval", "raf_db-retrieval", "dtd", "raf_db"),
        *("dtd-retrieval-train", "raf_db-retrieval-train", "dtd-train", "raf_db-train"),
    ]
    assert len(start.ran) == 8
    assert "ranker=None" in start.ran[0].argv
    assert sheet.not_here == {}


def test_cells_are_those_of_the_runs_and_the_mean_is_over_the_sets(root, few_shot):
    sheet = few_shot[2]
    told = json.loads((root / "work_dirs" / "classify" / "dtd" / "summary.json").read_text())
    lines = {(line.section, line.row): line.cells for line in sheet.lines if line.whose == OURS}
    assert {section for section, _ in lines} == {"1 shot", "2 shots", "whole train part"}
    cells = lines["2 shots", "RAR as the paper"]
    assert cells["dtd"] == 100 * told["rows"]["knn+rar order"]["2"]
    assert cells["average"] == pytest.approx((cells["dtd"] + cells["raf_db"]) / 2)
    assert cells["the ten"] == cells["dtd"]  # without RAF-DB
    assert lines["1 shot", "text, no exemplars"] == lines["2 shots", "text, no exemplars"]


def test_published_rows_stand_in_their_section(few_shot):
    sheet = few_shot[2]
    published = [(line.section, line.row) for line in sheet.lines if line.whose != OURS]
    assert ("1 shot", "CLIP+KNN") in published
    assert ("whole train part", "RAR, Qwen-VL") in published
    assert not any(section == "16 shots" for section, _ in published)
    text = sheet.as_text()
    assert "\n1 shot\n" in text
    assert text.index("43.3") < text.index("\n2 shots\n") < text.index("50.6")


def test_runs_that_are_there_are_read(root, few_shot, in_this_process):
    definition, planned, sheet, _, _ = few_shot
    start = in_this_process()
    again, _ = command.make_table(definition, planned, dry=False, on_cpu=True, start=start)
    assert start.ran == []
    assert again == sheet


def test_more_shots_are_asked_for_and_another_sample_is_refused(root, few_shot):
    definition = few_shot[0]
    more = plan(definition, options_of(root, shots=("1", "2", "4")))
    assert all(look(job, on_cpu=True).can_run for job in more.jobs)
    other = plan(definition, options_of(root, shots=("1",), limit=3))
    assert "holds a run with --limit None, not 3; give another" in look(other.jobs[0]).problems[0]


def test_a_set_that_is_not_here_is_a_column_without_numbers(root, few_shot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs" / "classification", tmp_path / "configs" / "classification")
    shutil.copy(root / "configs" / "classification" / "dtd.py", tmp_path / "configs" / "classification")
    definition = of_two_sets("few-shot", ("dtd", "eurosat"))
    options = Options(configs=tmp_path / "configs", work_dirs=root / "work_dirs", seeds=(1, 2), shots=("1", "2"))
    planned = plan(definition, options)
    sheet = sheet_of(definition, planned, {job.name: look(job) for job in planned.jobs})
    line = next(line for line in sheet.lines if line.row == "CLIP+KNN" and line.whose == OURS)
    assert "dtd" in line.cells
    assert not {"eurosat", "average", "the ten"} & set(line.cells)
    lacks = sheet.not_here["RAR as the paper"]
    assert any("split_zhou_EuroSAT.json must lie at" in lack for lack in lacks)
    assert any("hf download llava-hf/llava-1.5-7b-hf" in lack for lack in lacks)


def test_found_names_by_guesses_of_others(root, in_this_process, tmp_path):
    """`names find`, then `classify --names`, with and without a ranker."""
    for name in SETS:
        photos = sorted((root / name / "train").rglob("*.png"))
        keys = [str(photo.relative_to(root / name)) for photo in photos]
        guesses = {key: [Path(key).parent.name, "thing"] for key in keys}
        (tmp_path / f"{name}.json").write_text(json.dumps(guesses))
    definition = of_two_sets("fine-grained", {"dtd": "texture", "raf_db": "face"}).choose(["RAR as"])
    planned = plan(definition, options_of(root, guesses=tmp_path))
    assert [job.name for job in planned.jobs] == [
        *("dtd-guessed", "raf_db-guessed", "dtd-guessed-ranked", "raf_db-guessed-ranked")
    ]
    start = in_this_process()
    sheet, looks = command.make_table(definition, planned, dry=False, on_cpu=True, start=start)
    assert sheet.not_here == {}, looks
    ours = {line.row: line.cells for line in sheet.lines if line.whose == OURS}
    found = ours["RAR as released"]
    assert found["average cACC"] == pytest.approx((found["dtd cACC"] + found["raf_db cACC"]) / 2)
    assert found["dtd sACC"] > 0
    assert set(ours["RAR as the paper describes it"]) == set(found)
    assert len(start.ran) == 8
    again, _ = command.make_table(definition, planned, dry=False, on_cpu=True, start=start)
    assert again == sheet
    assert len(start.ran) == 8


def test_a_finder_says_what_it_needs(root):
    definition = of_two_sets("fine-grained", {"dtd": "texture"}).choose(["as released", "WordNet's"])
    planned = plan(definition, replace(options_of(root), work_dirs=root / "elsewhere"))
    (guessed, wordnet) = (look(job).problems for job in planned.jobs)
    assert "guessed names: --guesses FOLDER, with dtd.json: FineR's released file" in guessed[0]
    assert "WordNet 3.x: --wordnet FOLDER" in wordnet[0]


def test_table_11_is_swept_on_training_images(tmp_path, in_this_process):
    ann_file = write_lvis_world(tmp_path / "world", num_images=3, empty_image=None)
    shutil.copy(ann_file, ann_file.with_name("lvis_demo_calib.json"))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "clip_lvis.py").write_text(f"""
test_dataloader = dict(dataset=dict(data_root={str(tmp_path / "world")!r}, ann_file="annotations/lvis_demo_test.json"))
model = dict(recognizer=dict(
    vocabulary={str(ann_file)!r},
    cropper=dict(type="RegionCropper", scale=dict(type="AreaScale"), background=dict(type="BlurBackground")),
    encoder=dict(type="rar_mmdet.testing.FakeEncoder"),
    memory=dict(type="TextMemory", templates="single"),
))
""")
    definition = read_definitions()["crops"]
    planned = plan(definition, Options(configs=tmp_path / "configs", work_dirs=tmp_path / "work_dirs"))
    start = in_this_process()
    sheet, _ = command.make_table(definition, planned, dry=False, on_cpu=True, start=start)
    assert len(start.ran) == 1
    ours = {line.row: line.cells for line in sheet.lines if line.whose == OURS}
    rows = json.loads((tmp_path / "work_dirs" / "regions" / "clip_lvis" / "table.json").read_text())
    expected = next(row for row in rows if (row["sigma"], row["scale"]) == (10.0, 1.6))
    assert ours["blur, scale 1.6"] == {"AP": expected["AP"], "AP_s": expected["APs"], "AP_m": expected["APm"],
                                       "AP_l": expected["APl"]}  # fmt: skip
    assert len(ours) == 24
    assert all(cells["AP"] >= 0 for cells in ours.values())
    fixed = max(cells["AP"] for row, cells in ours.items() if row.startswith("blur, scale"))
    assert ours["blur, by area, best found"]["AP"] >= fixed
    assert "53.9" in sheet.as_text()


def test_table_6_reads_the_fine_tuning_demo(tmp_path):
    definition = read_definitions()["finetune"]
    options = Options(configs=tmp_path / "configs", work_dirs=tmp_path)
    planned = plan(definition, options)
    missing = sheet_of(definition, planned, {job.name: look(job) for job in planned.jobs})
    assert "run_finetune_demo.py: the demo's scripts are in a checkout" in missing.as_text()
    (tmp_path / "finetune-demo").mkdir()
    found = {"plain": 0.21, "in_context": 0.25, "tuned_a": 0.61, "tuned_b": 0.6, "blank": 0.2, "details": {}}
    (tmp_path / "finetune-demo" / "summary.json").write_text(json.dumps(found))
    sheet = sheet_of(definition, planned, {job.name: look(job) for job in planned.jobs})
    ours = {line.row: line.cells for line in sheet.lines if line.whose == OURS}
    assert ours["fine-tuned on source A"] == {"demo, rank-1": pytest.approx(61.0)}
    assert any("look at the order of the rows, not at the numbers" in note for note in sheet.notes)


def test_table_6_teaches_on_one_set_and_asks_about_ten(tmp_path):
    """Order, settings and folders of the commands; and the mean, where all ten sets have a number."""
    definition = read_definitions()["finetune"]
    planned = plan(definition, Options(work_dirs=tmp_path))
    row = next(row for row in planned.rows if row.name == "fine-tuned on source A")
    jobs = [part.job for part in row.parts]
    assert [type(job).__name__ for job in jobs] == ["FinetuneJob", "TaughtJob", *["ClassifyJob"] * 10]
    data, train = jobs[1].commands()
    assert data.argv[:4] == ("finetune", "data", str(jobs[1].data), "--mode")
    records = Path(data.argv[-1]) / "records.jsonl"
    assert train.argv[-1] == f"records={records}"
    adapter = Path(train.argv[train.argv.index("--out") + 1]) / "adapter"
    (classify,) = jobs[2].commands()
    asked = ("ranker.ask.type=Generate", "ranker.ask.prompt=paper")
    assert classify.argv[-3:] == (*asked, f"ranker.adapter={adapter}")
    assert any("weights" in line or "aircraft" in line.lower() for line in jobs[1].missing())
    for place, job in enumerate(jobs[2:]):
        job.folder.mkdir(parents=True)
        details = {"knn+rar order": {"4": {"seeds": [0.5, 0.5, 0.5]}}}
        value = {"knn+rar order": {"4": place / 10}}
        (job.folder / "summary.json").write_text(json.dumps({"rows": value, "details": details}))
        (job.folder / "run.json").write_text(json.dumps({"limit": None}))
    sheet = sheet_of(definition, planned, {job.name: look(job) for job in planned.jobs})
    ours = next(line.cells for line in sheet.lines if line.whose == OURS and line.row == "fine-tuned on source A")
    assert ours["ten sets"] == pytest.approx(45.0)
    assert ours["caltech101"] == pytest.approx(10.0)
