"""`rar-mmdet table lvis` and `v3det`: the real configs on a tiny world, with random models of the published kinds."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from rar_mmdet.models.testing import write_lvis_world
from rar_mmdet.tables import command
from rar_mmdet.tables.definitions import read_definitions
from rar_mmdet.tables.jobs import TestJob as BoxTest
from rar_mmdet.tables.jobs import launch, look, run_jobs
from rar_mmdet.tables.kinds import plan
from rar_mmdet.tables.rows import Options, sheet_of
from rar_mmdet.tables.sheet import OURS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory, worlds):
    """A folder of configs with the names of the project's, on a tiny world and tiny models; and the world's file."""
    root = tmp_path_factory.mktemp("tables")
    ann_file = write_lvis_world(root / "world", num_images=3, empty_image=None)
    (root / "configs").mkdir()
    torch.manual_seed(0)
    for row in read_definitions()["lvis"].rows:
        config = Config.fromfile(ROOT / "configs" / row.settings["config"])
        config = worlds.on_tiny_models(worlds.on_tiny_world(config, ann_file), root / "weights", None)
        config.test_dataloader.num_workers, config.test_dataloader.persistent_workers = 0, False
        config.dump(str(root / "configs" / row.settings["config"]))
    return root


@pytest.fixture(scope="module")
def made(world, in_this_process):
    """Table 3 as the command makes it, with its plan and how its rows stand."""
    definition = read_definitions()["lvis"]
    options = Options(world / "configs", world / "work_dirs")
    planned = plan(definition, options)
    start = in_this_process()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAR_MMDET_CACHE", str(world / "cache"))
        sheet, looks = command.make_table(definition, planned, dry=False, on_cpu=True, start=start)
    return planned, sheet, looks, start


def test_every_row_of_table_3_runs_with_tiny_random_models(made):
    planned, sheet, looks, start = made
    assert [one.argv[0].rsplit("/", 1)[1] for one in start.ran] == [
        *("clip_lvis.py", "clip_lvis_mask.py", "clip_lvis_fixed_crop.py", "regionclip_lvis.py", "rar_lvis_llava.py"),
        *("rar_lvis_qwen.py", "rar_lvis_internlm.py", "fgclip2_lvis.py", "rar_lvis_fgclip2.py"),
    ]
    ours = [line for line in sheet.lines if line.whose == OURS]
    assert len(ours) == len(planned.rows) == 9
    assert all(set(line.cells) == set(sheet.columns) for line in ours)
    assert sheet.not_here == {}
    assert all(found.result["report"]["ranker"]["asked"] for name, found in looks.items() if name.startswith("rar_"))


def test_numbers_are_those_of_the_runs(made):
    _, sheet, looks, _ = made
    line = next(line for line in sheet.lines if line.row == "RAR, LLaVA-1.5" and line.whose == OURS)
    metrics = looks["rar_lvis_llava"].result["metrics"]
    assert line.cells["AP"] == 100 * metrics["lvis/bbox_AP"]
    assert line.cells["AP_r"] == 100 * metrics["lvis/bbox_APr"]
    assert line.cells["recall@5"] == 100 * metrics["recognition/recall@5"]


def test_a_row_that_is_there_is_read_and_not_made_again(world, made, in_this_process):
    definition = read_definitions()["lvis"]
    planned = plan(definition, Options(world / "configs", world / "work_dirs"))
    start = in_this_process()
    sheet, _ = command.make_table(definition, planned, dry=False, on_cpu=True, start=start)
    assert start.ran == []
    assert sheet == made[1]


def test_the_papers_figures_stand_as_printed_and_are_not_called_ours(made):
    text = made[1].as_text()
    assert "RAR, Table 3" in text
    row = next(line for line in text.splitlines() if "40.6" in line)
    assert row.split()[-10:] == ["48.7", "40.6", "53.1", "59.2", "-", "-", "-", "-", "-", "[1][2]"]
    assert "almost surely AP_s, AP_m and AP_l under the wrong heads" in text
    assert "19.6" not in text
    assert "TAP, ViT-H" in text
    assert "TopPairs(max_per_image=300, box_score_weight=0.0, nms_iou=0.5" in text  # RegionCLIP's own emission
    assert "K = 5" in text


def test_every_format_says_the_same(world, made):
    sheet = made[1]
    stem = world / "tables" / "lvis"
    command.write_sheet(sheet, stem)
    content = json.loads(stem.with_suffix(".json").read_text())
    rows = list(csv.DictReader(stem.with_suffix(".csv").open()))
    assert len(content["lines"]) == len(rows) == len(sheet.lines)
    for line, in_json, in_csv in zip(sheet.lines, content["lines"], rows, strict=True):
        assert in_json["cells"] == dict(line.cells)
        assert {column: float(in_csv[column]) for column in line.cells} == dict(line.cells)
        assert (in_csv["row"], in_csv["whose"]) == (line.row, line.whose)
    markdown = stem.with_suffix(".md").read_text()
    assert sum(text.startswith("| ") for text in markdown.splitlines()) == 1 + len(sheet.lines)


def test_a_process_of_its_own(world, tmp_path):
    """As the command starts them: module, arguments, log and exit status."""
    job = BoxTest(world / "configs" / "clip_lvis.py", tmp_path / "own", num_images=2)
    looks = run_jobs([job], start=launch)
    assert looks["own"].result["first_images_only"] == 2
    assert (tmp_path / "own" / "table.log").stat().st_size > 0


def test_a_row_that_fails_does_not_stop_the_others(world, tmp_path):
    good = BoxTest(world / "configs" / "clip_lvis.py", world / "work_dirs" / "clip_lvis")
    bad = BoxTest(world / "configs" / "clip_lvis.py", tmp_path / "bad")
    looks = run_jobs([bad, good], start=lambda started, log: 3)
    assert looks["bad"].problems[0].startswith("bad ended with status 3; it said why above or in ")
    assert looks["clip_lvis"].is_done


def test_a_folder_with_another_run_is_not_taken_for_this_row(world, made):
    folder = world / "work_dirs" / "clip_lvis"
    other = look(BoxTest(world / "configs" / "clip_lvis_mask.py", folder))
    assert not other.can_run
    assert other.problems[0].startswith(f"{folder} holds a run of clip_lvis_mask.py with other settings (model.recog")
    assert "remove the folder, or give another --work-dirs" in other.problems[0]
    subset = look(BoxTest(world / "configs" / "clip_lvis.py", folder, num_images=2))
    assert "(3 images)" in subset.problems[0]


def test_what_cannot_run_here_says_what_is_missing(tmp_path):
    """The project's own configs, without data, weights or (unless one is here) a GPU."""
    definition = read_definitions()["lvis"].choose(["InternLM", "TAP"])
    planned = plan(definition, Options(ROOT / "configs", tmp_path / "work_dirs"))
    looks = {job.name: look(job) for job in planned.jobs}
    sheet = sheet_of(definition, planned, looks)
    (lacks, _) = sheet.not_here.values()
    assert any("lvis_v1_val.json" in lack for lack in lacks)
    assert any(lack.startswith("how to get it: annotations: https://www.lvisdataset.org") for lack in lacks)
    assert any("hf download timm/vit_base_patch16_clip_224.openai" in lack for lack in lacks)
    assert any("tools/convert_xc2.py" in lack for lack in lacks)
    assert torch.cuda.is_available() or any(lack.startswith("a GPU: none is here") for lack in lacks)
    text = sheet.as_text()
    assert "RAR, InternLM-XComposer2: (a) (b)" in text
    assert text.count("how to get it: annotations") == 1
    assert {line.row for line in sheet.lines} == {row.name for row in definition.rows} | {
        *("TAP, ViT-B", "TAP, ViT-L", "TAP, ViT-H")
    }


def test_v3det_has_the_keys_of_its_metric(tmp_path):
    definition = read_definitions()["v3det"]
    planned = plan(definition, Options(ROOT / "configs", tmp_path))
    metrics = {"coco/bbox_mAP": 0.1, "coco/bbox_mAP_50": 0.2, "recognition/top1": 0.3, "recognition/recall@5": 0.4}
    cells = planned.rows[0].parts[0].read({"metrics": metrics})
    assert cells == pytest.approx({"AP": 10.0, "AP50": 20.0, "top-1": 30.0, "recall@5": 40.0})


def test_rows_of_the_users_own(world, made, tmp_path):
    """A run by hand, and the file of `rar-mmdet score --json`, whose numbers have no evaluator's name before them."""
    metrics = made[2]["clip_lvis"].result["metrics"]
    (tmp_path / "scores.json").write_text(json.dumps({"bbox_AP": 0.25, "bbox_APr": 0.5}))
    given = (
        ("mine", world / "work_dirs" / "clip_lvis"),
        ("theirs", tmp_path / "scores.json"),
        ("gone", tmp_path / "x"),
    )
    definition = read_definitions()["lvis"].choose(["w/ box"])
    planned = plan(definition, Options(world / "configs", world / "work_dirs", given=given))
    sheet, _ = command.make_table(definition, planned, dry=False)
    cells = {line.row: line.cells for line in sheet.lines if line.whose == OURS}
    assert cells["mine"] == cells["CLIP w/ box"]
    assert cells["mine"]["AP"] == 100 * metrics["lvis/bbox_AP"]
    assert cells["theirs"] == {"AP": 25.0, "AP_r": 50.0}
    assert (
        "holds no numbers: give a folder with summary.json, or a file of `rar-mmdet score" in sheet.not_here["gone"][0]
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["lviss"], "there is no table 'lviss'; did you mean 'lvis'? Known: lvis, "),
        (["lvis", "--rows", "CLAP"], "table 'lvis' has no row with 'CLAP' in its name; rows: CLIP w/ box; "),
    ],
)
def test_unknown_names_are_refused_with_the_known(argv, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        command.main(argv)


def test_dry_run_runs_nothing_and_says_what_it_would(world, tmp_path, capsys):
    configs = str(world / "configs")
    argv = ["lvis", "--dry-run", "--on-cpu", "--configs", configs, "--work-dirs", str(tmp_path), "--rows", "w/ box"]
    assert command.main([*argv, "--gpus", "2"]) == 0
    out = capsys.readouterr().out
    assert "would run   clip_lvis" in out
    assert f"-m torch.distributed.run --standalone --nproc_per_node=2 -m rar_mmdet.engine {configs}/clip_lvis.py" in out
    assert out.endswith("0 of 1 are done, 1 would run\n")
    assert list(tmp_path.iterdir()) == []
