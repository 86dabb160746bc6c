"""`doctor` on a table of broken environments, all of them faked."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rar_mmdet import doctor
from rar_mmdet._host import CORE, HOST
from rar_mmdet.doctor import Copy, Gpu, Machine, examine, read_probe, render_problems, render_table

VERSIONS = {
    "torch": "2.11.0+cu130",
    "torchvision": "0.26.0",
    "mmengine": "0.10.7",
    "transformers": "5.23.0",
    "open-clip-torch": "3.3.0",
    "faiss-cpu": "1.15.1",
    "timm": "1.0.31",
    "numpy": "2.4.6",
    "numba": "0.68.1",
    "pycocotools": "2.0.11",
    "opencv-python": "5.0.0.93",
    "safetensors": "0.8.0",
    "sentencepiece": "0.2.3",
    "protobuf": "7.36.2",
    "pillow": "13.0.0",
    "matplotlib": "3.11.2",
    "tqdm": "4.70.1",
    "filelock": "4.3.1",
    "packaging": "26.4",
    "jinja2": "3.1.6",
    "mmcv": "2.1.0",
    "mmdet": "3.3.0",
    "lvis": "0.5.3",
    "setuptools": "81.0.0",
}
FACE = ("mmcv", "mmdet", "lvis", "setuptools")


def machine(changed: dict[str, str | None] | None = None, **fields) -> Machine:
    """A good machine but for `changed` (a version, or None: not installed) and `fields`."""
    versions = {name: v for name, v in (VERSIONS | (changed or {})).items() if v is not None}
    copies = {name: (Copy(version, "/site"),) for name, version in versions.items()}
    return Machine(**{"python": (3, 11, 7), "copies": copies, **fields})


def problems(of: Machine) -> list[tuple[str, str]]:
    return [(finding.problem, finding.line) for finding in examine(of) if finding.problem]


def test_a_good_machine_has_no_problem():
    assert problems(machine()) == []
    assert "no problem found" in render_problems(examine(machine()))
    names = {finding.name for finding in examine(machine())}
    assert names >= (set(CORE) | set(HOST) | {"python", "opencv", "mmcv ops", "GPU"}) - {"opencv-python"}


def test_the_core_alone_is_no_problem():
    without = machine(dict.fromkeys(FACE))
    assert problems(without) == []
    assert "for MMDetection only" in render_table(examine(without))


BROKEN = [
    pytest.param(machine(python=(3, 10, 2)), r"Python 3\.10\.2 is not supported", r"install\.sh", id="old-python"),
    pytest.param(machine(python=(3, 14, 0)), r"Python 3\.14\.0 is not supported", r"install\.sh", id="new-python"),
    pytest.param(machine({"torch": None}), "torch is not installed", "pip install 'torch>=", id="no-torch"),
    pytest.param(
        machine({"torch": "1.13.1"}), r"torch 1\.13\.1 is installed, torch>=", "pip install 'torch>=", id="old"
    ),
    pytest.param(machine({"transformers": "4.37.0"}), "transformers 4.37.0", "'transformers>=5.16,<6'", id="llm-pin"),
    pytest.param(machine({"mmcv": None}), "mmcv is not installed", "MMCV_WITH_OPS=1", id="mmdet-without-mmcv"),
    pytest.param(machine({"mmdet": None}), "mmdet is not installed", "pip install 'mmdet>=3.3", id="mmcv-alone"),
    pytest.param(machine({"mmcv": "2.2.0"}), r"mmcv 2\.2\.0 is installed", "mmcv==2.1.0", id="mmcv-too-new"),
    pytest.param(machine({"mmcv-lite": "2.1.0"}), "mmcv-lite brings", "uninstall -y mmcv mmcv-lite &&", id="lite"),
    pytest.param(machine({"mmcv-full": "1.7.2"}), "mmcv-full brings", "uninstall -y mmcv mmcv-full &&", id="full"),
    pytest.param(machine({"onedl-mmcv": "2.3.6"}), "onedl-mmcv brings", "uninstall -y mmcv onedl-mmcv", id="onedl"),
    pytest.param(machine(has_ops=False), "built without its ops", "MMCV_WITH_OPS=1", id="no-ops"),
    pytest.param(
        machine(has_ops=False, python=(3, 13, 5)), "built without its ops", r"scripts/install\.sh", id="no-ops-on-3.13"
    ),
    pytest.param(
        machine(broken={"mmcv.ops": "ImportError: _ext.so: undefined symbol"}),
        "ops do not load.*another torch.*undefined symbol",
        "--no-build-isolation",
        id="ops-of-another-torch",
    ),
    pytest.param(
        machine({"opencv-python-headless": "4.10.0"}),
        "opencv-python and opencv-python-headless share their files",
        "pip uninstall -y opencv-python opencv-python-headless.* && pip install opencv-python-headless",
        id="two-opencv",
    ),
    pytest.param(machine({"opencv-python": None}), "OpenCV is not installed", "pip install 'opencv-", id="no-opencv"),
    pytest.param(
        machine(broken={"cv2": "ImportError: libGL.so.1: cannot open"}), "libGL.so.1", "headless", id="no-libgl"
    ),
    pytest.param(
        machine(copies={**machine().copies, "numpy": (Copy("1.26.4", "/site"), Copy("2.4.6", "/site"))}),
        r"numpy is installed 2 times in one folder: 1\.26\.4, 2\.4\.6",
        "pip uninstall -y numpy; pip uninstall -y numpy; pip install 'numpy",
        id="numpy-twice",
    ),
    pytest.param(
        machine(broken={"numba": "ImportError: Numba needs NumPy 2.3 or less"}),
        "numba cannot be imported: .*NumPy 2.3",
        "--force-reinstall --no-deps 'numba>=",
        id="numba-and-numpy",
    ),
    pytest.param(
        machine(broken={"pkg_resources": "ModuleNotFoundError: No module named 'pkg_resources'"}),
        "pkg_resources cannot be imported",
        "pip install 'setuptools<82'",
        id="no-pkg-resources",
    ),
    pytest.param(machine({"setuptools": "83.0.0"}), r"setuptools 83\.0\.0", "'setuptools>=65,<82'", id="setuptools"),
    pytest.param(
        machine(gpu=Gpu(has_device=True, cuda=None)), "this torch is built for the CPU", "uninstall", id="cpu-torch"
    ),
    pytest.param(machine(gpu=Gpu(True, "13.0")), r"driver is too old for CUDA 13\.0", "nvidia-smi", id="driver"),
]


@pytest.mark.parametrize(("broken", "problem", "line"), BROKEN)
def test_each_problem_comes_alone_with_its_line(broken, problem, line):
    (found,) = problems(broken)
    assert re.search(problem, found[0]), found
    assert re.search(line, found[1]), found
    assert found[1] in render_problems(examine(broken))


def test_a_copy_in_another_folder_is_shadowed_and_no_problem():
    copies = {**machine().copies, "numpy": (Copy("2.4.6", "/site"), Copy("1.26.4", "/usr/lib/python3"))}
    assert problems(machine(copies=copies)) == []


def test_one_headless_build_is_as_good_as_the_other():
    assert problems(machine({"opencv-python": None, "opencv-python-headless": "5.0.0.93"})) == []


def test_mmcv_lite_without_mmdetection_is_no_problem():
    assert problems(machine(dict.fromkeys(FACE) | {"mmcv-lite": "2.1.0"})) == []


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    assert problems(machine(folders={"memories": folder})) == []
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    ((problem, line),) = problems(machine(folders={"memories": folder}))
    assert "cannot be written" in problem
    assert "export RAR_MMDET_CACHE=" in line


def test_what_the_probe_says():
    lines = [
        *('["start", "numpy"]', "a package that prints", '["good", "numpy"]'),
        *('["start", "cv2"]', '["bad", "cv2", "ImportError: libGL"]', '["start", "mmcv.ops"]'),
    ]
    broken, gpu = read_probe(lines, -11)
    assert broken == {"cv2": "ImportError: libGL", "mmcv.ops": "the process died with status -11 while importing it"}
    assert gpu.names == ()
    _, gpu = read_probe(['["gpu", "13.0", ["NVIDIA H100, 80 GiB, sm_90"]]'], 0)
    assert gpu.cuda == "13.0"
    assert examine(machine(gpu=gpu))[-1].found.startswith("NVIDIA H100")


def test_status_is_1_when_something_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "weights_of_configs", lambda: [("encoder of x.py", ["ViT-B-16: run this\n  now"])])
    monkeypatch.setattr(doctor, "look", machine)
    assert doctor.main([]) == 0
    assert "encoder of x.py: not here\n    ViT-B-16: run this\n      now" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "look", lambda: machine({"torch": None}))
    assert doctor.main([]) == 1
    assert "1. torch is not installed\n   type: pip install 'torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(machine({"torch": None}), id="absent"),
        pytest.param(machine(broken={"torchvision": "RuntimeError: operator torchvision::nms"}), id="does-not-load"),
        pytest.param(machine({"opencv-python": None}), id="no-opencv"),
    ],
)
def test_weights_are_not_looked_at_where_something_does_not_load(broken, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "weights_of_configs", lambda: pytest.fail("looked at"))
    monkeypatch.setattr(doctor, "look", lambda: broken)
    assert doctor.main([]) == 1
    assert "weights: not looked at" in capsys.readouterr().out


def test_optional_packages_may_be_absent_but_not_wrong():
    assert problems(machine({"faiss-cpu": None})) == []
    ((problem, line),) = problems(machine({"faiss-cpu": "1.3.0"}))
    assert "faiss-cpu 1.3.0 is installed" in problem
    assert "pip install 'faiss-cpu>=1.8'" in line


def test_what_an_interrupted_pip_left_is_found(tmp_path, monkeypatch):
    (tmp_path / "timm-1.0.31.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "CORE_MODULES", ())
    monkeypatch.setattr(doctor, "OPTIONAL_MODULES", ())
    monkeypatch.setattr(doctor, "HOST_MODULES", ())
    ((problem, line),) = problems(replace(doctor.look(), folders={}))
    assert "timm-1.0.31.dist-info is what an interrupted pip left of timm" in problem
    assert line.startswith(f"rm -r '{tmp_path}")


def test_this_machine(monkeypatch):
    monkeypatch.setattr(doctor, "CORE_MODULES", ("numpy",))  # the others take seconds
    monkeypatch.setattr(doctor, "OPTIONAL_MODULES", ())
    monkeypatch.setattr(doctor, "HOST_MODULES", ())
    seen = doctor.look()
    assert problems(replace(seen, folders={})) == []
    assert seen.has_ops
    assert seen.version_of("Open_CLIP_torch")
    assert all(isinstance(path, Path) for path in seen.folders.values())


def test_the_weights_of_the_shipped_configs():
    presets = dict(doctor.weights_of_configs())
    assert presets["encoder of _base_/retrievers/clip_demo.py"] == []
    assert "ranker of _base_/rankers/server.py" not in presets
    assert set(presets) >= {f"ranker of _base_/rankers/{name}.py" for name in ("llava", "qwen", "internvl3")}
