"""What needs no MMDetection runs in a process in which it cannot be imported and is not seen as installed.

Each program gets the blocked modules first; those that read no config run without MMEngine as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BLOCKER = """
import importlib.abc, sys
from importlib import metadata

BLOCKED = {blocked!r}


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Blocker())
_distributions, _from_name = metadata.distributions, metadata.Distribution.from_name


def from_name(name):
    if name.lower() in BLOCKED:
        raise metadata.PackageNotFoundError(name)
    return _from_name(name)


metadata.Distribution.from_name = from_name
metadata.distributions = lambda: (d for d in _distributions() if d.metadata["Name"].lower() not in BLOCKED)
"""
HOST = ("mmdet", "mmcv", "lvis")
WITHOUT_CONFIGS = (*HOST, "mmengine")


def run_blocked(program: str, blocked: tuple[str, ...], cwd: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=blocked) + program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_tool(name: str, blocked: tuple[str, ...], cwd: Path, *arguments: str) -> str:
    program = f"""
import runpy
sys.argv[0] = {str(ROOT / "tools" / name)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    return run_blocked(program, blocked, cwd, *arguments)


def test_the_blocker_blocks(tmp_path):
    program = "\nimport mmcv\n"
    with pytest.raises(AssertionError, match="No module named 'mmcv'"):
        run_blocked(program, HOST, tmp_path)


def test_five_lines(tmp_path):
    """With an encoder of the user's own, and with the demo's open_clip folder and ranker."""
    out = run_blocked(
        f"""
from rar_mmdet import RegionRecognizer
from rar_mmdet.encoders import OpenClipEncoder
from rar_mmdet.memory import TextMemory
from rar_mmdet.rankers import TransformersRanker
from rar_mmdet.regions import AreaScale, BlurBackground, RegionCropper
from rar_mmdet.testing import FakeEncoder, make_image

recognizer = RegionRecognizer(
    cropper=RegionCropper(size=32, scale=AreaScale(), background=BlurBackground()),
    encoder=FakeEncoder(),
    memory=TextMemory(),
    category_names=["cat", "dog", "bird"],
)
print(*recognizer(make_image(100, 120), [[10, 20, 60, 80], [0, 0, 30, 30]]).best_names)

recognizer = RegionRecognizer(
    cropper=RegionCropper(size=64),
    encoder=OpenClipEncoder(model={"local-dir:" + str(ROOT / "demo/weights/clip")!r}),
    memory=TextMemory(),
    ranker=TransformersRanker(
        model={str(ROOT / "demo/weights/ranker")!r}, loading=dict(modules=[{str(ROOT / "demo/tiny_vision.py")!r}])
    ),
    category_names=["striped red star", "plain blue circle"],
)
print(*recognizer(make_image(100, 120), [[10, 20, 60, 80]]).best_names)
""",
        WITHOUT_CONFIGS,
        tmp_path,
    )
    first, second = out.strip().splitlines()[-2:]
    assert len(first.split()) == 2
    assert set(first.split()) <= {"cat", "dog", "bird"}
    assert second in ("striped red star", "plain blue circle")


def test_scoring(tmp_path):
    annotations = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0}
        ],
    }
    results = [{"image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50], "score": 0.9}]
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    (tmp_path / "results.json").write_text(json.dumps(results))
    files = ("results.json", "annotations.json", "--protocol", "coco", "--json", "numbers.json")
    run_tool("score.py", WITHOUT_CONFIGS, tmp_path, *files)
    assert json.loads((tmp_path / "numbers.json").read_text())["bbox_mAP"] == pytest.approx(1)


def test_memories_configs_and_calibration(tmp_path):
    config, photos = str(ROOT / "configs/demo/clip_demo.py"), ROOT / "demo/photos"
    (tmp_path / "names.txt").write_text("striped red star\nplain blue circle\n")
    out = run_blocked(
        f"""
from rar_mmdet import RegionRecognizer
from rar_mmdet.cli import main

assert main(["memory", "build", {config!r}, "--names", "names.txt", "--out", "memory"]) == 0
assert main(["memory", "inspect", "memory"]) == 0
annotations = ["--annotations", {str(photos / "boxes.json")!r}, "--images", {str(photos)!r}]
policies = ["--scales", "1.5", "--sigmas", "0"]
assert main(["calibrate", "regions", {config!r}, *annotations, *policies, "--out", "out"]) == 0
assert main(["new-config", {str(photos / "boxes.json")!r}, "--images", {str(photos)!r}, "--out", "mine"]) == 0
print(len(RegionRecognizer.from_config("mine/retrieval.py").category_names), "names")
""",
        HOST,
        tmp_path,
    )
    assert "CategoryMemory(2 categories" in out
    assert "text       2 entries" in out
    assert (tmp_path / "out" / "table.json").is_file()
    assert " names" in out


def test_doctor_finds_a_sound_core(tmp_path):
    program = """
from rar_mmdet import doctor
doctor.CORE_MODULES = ("numpy", "cv2")  # the others take seconds
doctor.OPTIONAL_MODULES = ()
doctor.weights_of_configs = list
sys.exit(doctor.main([]))
"""
    out = run_blocked(program, HOST, tmp_path)
    assert "for MMDetection only" in out
    assert "no problem found" in out
