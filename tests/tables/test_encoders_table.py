"""`rar-mmdet table encoders` on the demo world: the demo's CLIP, and tiny random models of each family."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from rar_mmdet.tables import command, encoders_command
from rar_mmdet.tables.encoders_command import plan_encoders
from rar_mmdet.tables.rows import Options

ROOT = Path(__file__).parents[2]
DEMO_CLIP = ROOT / "configs" / "_base_" / "retrievers" / "clip_demo.py"
KINDS = ("siglip", "siglip2-naflex", "metaclip_2")  # of transformers


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The demo's config on a small demo world of its own kind."""
    root = tmp_path_factory.mktemp("encoders")
    make = [sys.executable, ROOT / "demo" / "make_world.py", "--out", root / "demo", "--seed", "5", "--workers", "1"]
    subprocess.run([*make, "--photos", "10", "4", "8"], check=True, capture_output=True)
    ann_file = str(root / "demo" / "annotations" / "lvis_demo_test.json")
    content = Config.fromfile(ROOT / "configs" / "demo" / "rar_demo.py")
    content.merge_from_dict(
        {
            "test_dataloader.num_workers": 0,
            "test_dataloader.dataset.data_root": f"{root / 'demo'}/",
            "model.recognizer.vocabulary": ann_file,
        }
    )
    for metric in content.test_evaluator:
        metric.ann_file = ann_file
    content.dump(str(root / "demo_world.py"))
    return root / "demo_world.py"


@pytest.fixture(scope="module")
def presets(config, worlds):
    """A config file with an encoder, for each family that presets have; random weights."""
    root = config.parent / "weights"
    transformers_world = worlds._helper("encoders/transformers_world.py")
    encoders = {
        "open_clip": {"type": "OpenClipEncoder", "model": f"local-dir:{worlds.clip_folder(root, 32)}"},
        "regionclip": {"type": "RegionClipEncoder", "checkpoint": str(worlds.regionclip_file(root))},
        "fgclip2": {"type": "FGCLIP2Encoder", "model": str(worlds.fgclip2_folder(root))},
        "fgclip2_regions": {"type": "FGCLIP2RegionEncoder", "model": str(worlds.fgclip2_folder(root))},
    }
    for kind in KINDS:
        folder = transformers_world.write_model(root / kind, kind)
        encoders[kind.replace("-", "_")] = {"type": "TransformersEncoder", "model": str(folder)}
    files = []
    for name, encoder in encoders.items():
        files.append(root / f"{name}.py")
        memory = (
            "memory = dict(type='TextMemory', templates='clip7', temperature=0.01)\n" if name == "regionclip" else ""
        )
        files[-1].write_text(f"encoder = {encoder!r}\n{memory}", encoding="utf-8")
    return [str(DEMO_CLIP), *map(str, files)]


@pytest.fixture(scope="module")
def made(config, presets, in_this_process):
    """The table of all, with its plan and what was started."""
    options = Options(work_dirs=config.parent / "work_dirs")
    definition, planned = plan_encoders(config, presets, options)
    start = in_this_process()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAR_MMDET_CACHE", str(config.parent / "cache"))
        sheet, looks = command.make_table(definition, planned, dry=False, start=start)
    return sheet, looks, start


def test_every_family_is_a_row_on_the_same_boxes(made, presets):
    sheet, looks, start = made
    assert [line.row for line in sheet.lines] == [Path(file).stem for file in presets]
    assert len(start.ran) == len(presets)
    assert sheet.not_here == {}
    assert all(set(line.cells) == set(sheet.columns) for line in sheet.lines)
    assert len({found.result["metrics"]["recognition/objects"] for found in looks.values()}) == 1
    assert len({str(found.result["protocol"]["annotations_sha256"]) for found in looks.values()}) == 1


def test_the_encoder_that_learned_the_demo_world_leads(made):
    cells = {line.row: line.cells for line in made[0].lines}
    assert cells["clip_demo"]["top-1"] > 40
    assert all(other["top-1"] < 10 for row, other in cells.items() if row != "clip_demo")
    assert all(other["recall@5"] >= other["top-1"] for other in cells.values())


def test_retrieval_alone_is_compared_and_each_has_its_own_memory(made):
    sheet, looks, _ = made
    assert all("ranker" not in found.result["report"] for found in looks.values())
    own = next(line for line in sheet.protocol if line.startswith("regionclip: "))
    assert own.startswith("regionclip: TopPairs(max_per_image=300, box_score_weight=0.0, nms_iou=None")
    assert "; templates clip7; temperature 0.01;" in own
    assert sum("templates single" in line for line in sheet.protocol) == len(sheet.protocol) - 1


def test_a_second_time_nothing_runs(config, presets, made, in_this_process):
    definition, planned = plan_encoders(config, presets, Options(work_dirs=config.parent / "work_dirs"))
    start = in_this_process()
    sheet, _ = command.make_table(definition, planned, dry=False, start=start)
    assert start.ran == []
    assert sheet == made[0]


def test_the_command_reads_it_and_writes_it(config, presets, made, capsys):
    work_dirs = config.parent / "work_dirs"
    assert encoders_command.main([str(config), "--presets", *presets, "--work-dirs", str(work_dirs)]) == 0
    assert "Encoders. Retrieval alone on the same boxes, an encoder a row: demo_world.py" in capsys.readouterr().out
    rows = list(csv.DictReader((work_dirs / "tables" / "encoders_demo_world.csv").open()))
    assert [float(row["AP"]) for row in rows] == [line.cells["AP"] for line in made[0].lines]


def test_figures_of_others_stand_beside_on_lvis_alone(config, tmp_path):
    names = ["openai-clip-b16", "fg-clip2-base-regions"]
    options = Options(work_dirs=tmp_path)
    here, _ = plan_encoders(config, names, options)
    assert here.published == ()
    lvis, planned = plan_encoders(ROOT / "configs" / "clip_lvis.py", names, options)
    assert [(one.row, one.cells["top-1"]) for one in lvis.published] == [(names[0], 20.9), (names[1], 47.3)]
    assert "FG-CLIP 2's page" in lvis.published[0].source
    assert any("hf download qihoo360/fg-clip2-base" in line for line in planned.jobs[1].missing())


def test_the_ranker_stays_when_asked(config, tmp_path):
    _, planned = plan_encoders(config, [str(DEMO_CLIP)], Options(work_dirs=tmp_path), keep_ranker=True)
    recognizer = Config.fromfile(planned.jobs[0].config).model.recognizer
    assert recognizer.ranker.type == "TransformersRanker"
    _, planned = plan_encoders(config, [str(DEMO_CLIP)], Options(work_dirs=tmp_path))
    assert Config.fromfile(planned.jobs[0].config).model.recognizer.ranker is None


@pytest.mark.parametrize(
    ("presets", "said"),
    [
        (["openai-clip-b17"], "there is no encoder preset 'openai-clip-b17'; nearest: openai-clip-b16"),
        ([str(ROOT / "configs" / "_base_" / "rankers" / "llava.py")], "has no dict `encoder`; give a file such as"),
        (["openai-clip-b16", "openai-clip-b16"], "--presets names 'openai-clip-b16' twice"),
    ],
)
def test_odd_presets_are_refused(config, presets, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        plan_encoders(config, presets, Options(work_dirs=tmp_path))


def test_a_config_without_one_recogniser_is_refused(tmp_path):
    config = tmp_path / "none.py"
    config.write_text("model = dict(type='X')\n")
    with pytest.raises(ValueError, match="expected one `recognizer` in the model of .*none.py, found 0"):
        plan_encoders(config, ["openai-clip-b16"], Options(work_dirs=tmp_path))
