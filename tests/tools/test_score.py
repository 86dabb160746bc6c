"""`tools/score.py`: the reference numbers from two files, and errors a user can act on; no host package is needed."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rar_mmdet.cli import main as rar_mmdet


def score(arguments: list[str]) -> int:
    return rar_mmdet(["score", *arguments])


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROOT = Path(__file__).parents[2]
worlds = load("scoring_oracles", ROOT / "tests" / "scoring_oracles.py")


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str, dict[str, Any], list[dict[str, Any]]]:
    dataset, records = worlds.make_world(4, images=6)
    (tmp_path / "ann.json").write_text(json.dumps(dataset))
    (tmp_path / "run.bbox.json").write_text(json.dumps(records))
    return str(tmp_path / "run.bbox.json"), str(tmp_path / "ann.json"), dataset, records


def run(*args: str, out: Path) -> dict[str, Any]:
    assert score([*args, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_lvis_numbers_equal_lvis_api(files: tuple, tmp_path: Path) -> None:
    results, annotations, dataset, records = files
    numbers = run(results, annotations, "--protocol", "lvis", out=tmp_path / "n.json")
    expected = worlds.run_lvis_api(dataset, records).results
    assert numbers == {f"bbox_{key}": float(value) for key, value in expected.items()}


def test_coco_numbers_equal_pycocotools(files: tuple, tmp_path: Path) -> None:
    results, annotations, dataset, records = files
    numbers = run(results, annotations, "--protocol", "coco", out=tmp_path / "n.json")
    stats = worlds.run_pycocotools(dataset, records).stats.tolist()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100"]
    assert [numbers[f"bbox_{name}"] for name in names] == stats
    mmdet_names = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"]
    assert [numbers[f"bbox_{name}"] for name in mmdet_names] == stats[:6]


@pytest.mark.parametrize("beside", [True, False], ids=["tree-beside-annotations", "tree-by-option"])
def test_v3det_scores_both_protocols(files: tuple, tmp_path: Path, beside: bool) -> None:
    results, annotations, dataset, records = files
    name = "v3det_2023_v1_category_tree.json" if beside else "other.json"
    (tmp_path / name).write_text(json.dumps({"2": 1, "3": 2, "6": 5}))
    option = [] if beside else ["--category-tree", str(tmp_path / name)]
    numbers = run(results, annotations, "--protocol", "v3det", *option, out=tmp_path / "n.json")
    for suffix, below in (("", {}), ("_tree", {1: (2, 3), 2: (3,), 5: (6,)})):
        precision = worlds.run_pycocotools(dataset, records, (300,), descendants=below).eval["precision"][:, :, :, 0, 0]
        assert numbers[f"bbox_AP{suffix}"] == numbers[f"bbox_mAP{suffix}"] == np.mean(precision[precision > -1])


def test_v3det_without_a_tree_says_so(files: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = run(*files[:2], "--protocol", "v3det", out=tmp_path / "n.json")
    assert not any(key.endswith("_tree") for key in numbers)
    assert "--category-tree" in capsys.readouterr().err


def test_masks(files: tuple, tmp_path: Path) -> None:
    results, annotations, dataset, records = files
    numbers = run(results, annotations, "--protocol", "lvis", "--metric", "segm", out=tmp_path / "n.json")
    assert numbers["segm_AP"] == worlds.run_lvis_api(dataset, records, "segm").results["AP"]


def test_compare_and_classes(files: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, annotations, _, records = files
    other = tmp_path / "other.bbox.json"
    other.write_text(json.dumps(records[::2]))
    options = ["--compare", str(other), "--resamples", "5", "--classes", str(tmp_path / "classes.csv")]
    numbers = run(results, annotations, "--protocol", "lvis", *options, out=tmp_path / "n.json")
    ap = numbers["compare"]["numbers"]["bbox_AP"]
    assert ap["first"] == pytest.approx(numbers["bbox_AP"])
    assert ap["difference"] == pytest.approx(ap["first"] - ap["other"])
    assert "classes that differ most" in capsys.readouterr().out
    with open(tmp_path / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [str(k) for k in range(1, 7)]
    assert all(row["frequency"] in "rcf" and row["difference"] for row in rows)


def test_a_subset_is_noticed_and_can_be_scored_alone(
    files: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, annotations, dataset, records = files
    some = {i["id"] for i in dataset["images"][:2]}
    records = [r for r in records if r["image_id"] in some]
    Path(results).write_text(json.dumps(records))
    run(results, annotations, "--protocol", "lvis", out=tmp_path / "n.json")
    assert "add --seen-only" in capsys.readouterr().err
    numbers = run(results, annotations, "--protocol", "lvis", "--seen-only", out=tmp_path / "n.json")
    cut = {**dataset, "images": dataset["images"][:2]}
    assert numbers["bbox_AP"] == worlds.run_lvis_api(cut, records).results["AP"]
    assert numbers["images_scored"] == 2


def test_empty_result_file_scores_zero(files: tuple, tmp_path: Path) -> None:
    Path(files[0]).write_text("[]")
    assert run(*files[:2], "--protocol", "lvis", out=tmp_path / "n.json")["bbox_AP"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"score": float("nan")}, "record 5 .* has score nan", id="nan"),
        pytest.param({"score": float("-inf")}, "record 5 .* has score -inf", id="inf"),
        pytest.param({"image_id": 999}, "result file .*run.bbox.json: detection 5 is of image 999", id="unknown-image"),
        pytest.param(
            {"category_id": "1"},
            "result file .*run.bbox.json: detection 5 has category_id '1', the annotations have 1",
            id="text-category",
        ),
        pytest.param({"bbox": [1, 1, -5, 5]}, "record 5 .* negative size", id="negative"),
    ],
)
def test_bad_records_are_named(
    files: tuple, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results, annotations, _, records = files
    records[5].update(change)
    Path(results).write_text(json.dumps(records))
    assert score([results, annotations, "--protocol", "coco"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error


def test_swapped_files_are_noticed(files: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    assert score([files[1], files[0], "--protocol", "coco"]) == 2
    assert "give the result file first" in capsys.readouterr().err
    assert score([files[0], files[0], "--protocol", "coco"]) == 2
    assert "were the result file and the annotation file swapped?" in capsys.readouterr().err


def test_scores_where_no_host_package_can_be_imported(files: tuple, tmp_path: Path) -> None:
    """Nor PyTorch, nor OpenCV: scoring needs NumPy, pycocotools and tqdm."""
    script = ROOT / "tools" / "score.py"
    out = tmp_path / "n.json"
    program = f"""
import runpy, sys
for name in ("mmdet", "mmcv", "mmengine", "torch", "cv2", "lvis", "transformers"):
    sys.modules[name] = None  # importing it fails
sys.argv = {[str(script), *files[:2], "--protocol", "lvis", "--json", str(out)]!r}
runpy.run_path({str(script)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["bbox_AP"] == worlds.run_lvis_api(files[2], files[3]).results["AP"]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        score(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for word in (
        "Where results.bbox.json comes from",
        "test_evaluator.0.outfile_prefix=",
        "neg_category_ids",
        "--seen-only",
    ):
        assert word in said


def test_what_cannot_be_used_ends_with_status_2(
    files: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, annotations = files[:2]
    assert score([str(tmp_path / "none.json"), annotations, "--protocol", "lvis"]) == 2
    assert "none.json does not exist" in capsys.readouterr().err
    assert score([results, annotations, "--protocol", "lvis", "--json", str(tmp_path / "no" / "n.json")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
    assert score([results, annotations, "--protocol", "lvis", "--classes", str(tmp_path)]) == 2
    assert "cannot be written: Is a directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        score([results, annotations, "--protocol", "lvis", "--resamples", "0"])
    assert stop.value.code == 2
    assert "expected a number from 1 on" in capsys.readouterr().err


def test_notes_stand_before_the_numbers(files: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of both files: an annotation of no image, and a category the annotations do not have."""
    results, annotations, dataset = files[:3]
    dataset["annotations"][0]["image_id"] = 999
    Path(annotations).write_text(json.dumps(dataset))
    run(results, annotations, "--protocol", "coco", out=tmp_path / "n.json")
    said = capsys.readouterr().err
    assert "annotations have image_id 999, and the file has no such image" in said
    assert "category_id 7 is no category of the annotations" in said
    assert "Is --protocol lvis meant?" in said
    run(results, annotations, "--protocol", "lvis", out=tmp_path / "n.json")
    assert "is annotated in part" not in capsys.readouterr().err
