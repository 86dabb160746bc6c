"""`rar-mmdet doctor`: what is installed against what is supported, and the line to type for each problem.

`look` gathers what there is to know in a `Machine`; `examine` judges it and does nothing else, so that tests can hand
it any broken environment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from rar_mmdet import __version__
from rar_mmdet._host import CORE, HOST, OPTIONAL, PYTHON, is_supported, line_for, mmcv_has_ops

__all__ = ["Copy", "Finding", "Gpu", "Machine", "examine", "look", "main", "read_probe"]

OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
# Other packages that bring a module `mmcv` or `mmdet`.
RIVALS = {"mmcv": ("mmcv-full", "mmcv-lite", "onedl-mmcv"), "mmdet": ("onedl-mmdetection",)}
CORE_MODULES = ("numpy", "cv2", "torch", "torchvision", "numba", "pycocotools.mask", "transformers", "open_clip", "PIL")
OPTIONAL_MODULES = ("faiss", "peft", "accelerate", "starlette", "uvicorn", "python_multipart", "supervision")
HOST_MODULES = ("pkg_resources", "mmcv.ops", "mmdet")
# Of what package a module that cannot be loaded is.
PACKAGE_OF = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "faiss": "faiss-cpu",
    "python_multipart": "python-multipart",
    "pycocotools.mask": "pycocotools",
    "open_clip": "open_clip_torch",
    "pkg_resources": "setuptools",
    "mmcv.ops": "mmcv",
}
HEADLESS = f"pip uninstall -y {' '.join(OPENCV)} && pip install opencv-python-headless"


@dataclass(frozen=True)
class Copy:
    """One installed copy of a package."""

    version: str
    folder: str = ""


@dataclass(frozen=True)
class Gpu:
    """What torch says about the GPU, and whether the system has one."""

    has_device: bool = False  # an NVIDIA device file is there
    cuda: str | None = None  # CUDA version that torch was built with; None: a build for the CPU
    names: tuple[str, ...] = ()  # the devices torch can use


@dataclass(frozen=True)
class Machine:
    """What there is to judge."""

    python: tuple[int, int, int]
    copies: Mapping[str, tuple[Copy, ...]]  # normalised package name -> copies, the one Python takes first
    broken: Mapping[str, str] = field(default_factory=dict)  # module that is installed but fails to load -> why
    has_ops: bool = True  # mmcv's compiled extension is there
    gpu: Gpu = Gpu()
    folders: Mapping[str, Path] = field(default_factory=dict)  # what is kept there -> folder
    left_overs: tuple[Path, ...] = ()  # records of packages without a name and version

    def version_of(self, name: str) -> str | None:
        copies = self.copies.get(_normalised(name))
        return copies[0].version if copies else None

    def opencv_builds(self) -> list[str]:
        return [name for name in OPENCV if self.version_of(name)]


@dataclass(frozen=True)
class Finding:
    """One row of the table: something installed, what is supported, and what is wrong with it, if anything."""

    name: str
    found: str
    wanted: str = ""
    problem: str = ""
    line: str = ""  # what to type; empty if there is no problem


def examine(machine: Machine) -> list[Finding]:
    """Judge a machine: one finding for each thing looked at, in the order of the table."""
    uses_host = any(machine.version_of(name) for name in ("mmcv", "mmdet"))
    findings = [_python(machine.python)]
    findings += [_package(machine, name) for name in CORE if name != "opencv-python"]
    findings.append(_opencv(machine))
    for name in OPTIONAL:
        wanted = f"{OPTIONAL[name]}, for an extra only"
        findings.append(_package(machine, name) if machine.version_of(name) else Finding(name, "-", wanted))
    for name in HOST:
        wanted = f"{HOST[name]}, for MMDetection only"
        found = machine.version_of(name) or "-"
        findings.append(_package(machine, name) if uses_host else Finding(name, found, wanted))
    findings += [_left_over(path) for path in machine.left_overs]
    if uses_host:
        findings += _rivals(machine)
        findings += _ops(machine)
    findings += _unloadable(machine)
    findings.append(_gpu(machine.gpu))
    findings += [_folder(what, path) for what, path in machine.folders.items()]
    return findings


def _python(version: tuple[int, int, int]) -> Finding:
    found = ".".join(map(str, version))
    if SpecifierSet(PYTHON).contains(found, prereleases=True):
        return Finding("python", found, PYTHON)
    return Finding(
        "python",
        found,
        PYTHON,
        f"Python {found} is not supported",
        "rm -r .venv && PYTHON=python3.13 bash scripts/install.sh   (in a checkout of rar_mmdet)",
    )


def _package(machine: Machine, name: str) -> Finding:
    wanted = (CORE | HOST | OPTIONAL)[name]
    copies = machine.copies.get(_normalised(name), ())
    if not copies:
        return Finding(name, "-", wanted, f"{name} is not installed", line_for(name, machine.python[:2]))
    found = copies[0].version
    beside = [copy.version for copy in copies[1:] if copy.folder == copies[0].folder]
    if beside:
        remove = "; ".join([f"pip uninstall -y {name}"] * (1 + len(beside)))
        problem = f"{name} is installed {1 + len(beside)} times in one folder: {', '.join([found, *beside])}"
        return Finding(name, found, wanted, problem, f"{remove}; {line_for(name, machine.python[:2])}")
    if not is_supported(name, found):
        problem = f"{name} {found} is installed, {name}{wanted} is supported"
        return Finding(name, found, wanted, problem, line_for(name, machine.python[:2]))
    return Finding(name, found, wanted)


def _left_over(path: Path) -> Finding:
    package = path.name.removesuffix(".dist-info").rpartition("-")[0]
    problem = f"{path} is what an interrupted pip left of {package}"
    return Finding(
        package, "damaged", "", problem, f"rm -r '{path}' && pip install --force-reinstall --no-deps {package}"
    )


def _opencv(machine: Machine) -> Finding:
    builds = machine.opencv_builds()
    found, wanted = (
        ", ".join(f"{name} {machine.version_of(name)}" for name in builds),
        f"one build {CORE['opencv-python']}",
    )
    if not builds:
        return Finding("opencv", "-", wanted, "OpenCV is not installed", line_for("opencv-python"))
    if len(builds) > 1:
        problem = f"{' and '.join(builds)} share their files; removing one breaks the other"
        return Finding("opencv", found, wanted, problem, HEADLESS)
    if not is_supported("opencv-python", machine.version_of(builds[0]) or ""):
        return Finding("opencv", found, wanted, f"{found} is too old", f"pip install -U {builds[0]}")
    if "cv2" in machine.broken:
        problem = f"OpenCV cannot be loaded: {machine.broken['cv2']}"
        return Finding("opencv", found, wanted, problem, HEADLESS)
    return Finding("opencv", found, wanted)


def _rivals(machine: Machine) -> list[Finding]:
    findings = []
    for name, rivals in RIVALS.items():
        there = [rival for rival in rivals if machine.version_of(rival)]
        for rival in there:
            problem = f"{rival} brings a module {name} of its own, beside or in place of {name}"
            line = f"pip uninstall -y {' '.join([name, *there])} && {line_for(name, machine.python[:2])}"
            findings.append(Finding(rival, machine.version_of(rival) or "", "not installed", problem, line))
    return findings


def _ops(machine: Machine) -> list[Finding]:
    if machine.version_of("mmcv") is None:
        return []
    line = line_for("mmcv", machine.python[:2])
    if not machine.has_ops:
        problem = "mmcv was built without its ops (mmcv._ext is missing)"
        return [Finding("mmcv ops", "none", "compiled", problem, line)]
    why = machine.broken.get("mmcv.ops")
    if why:
        problem = f"mmcv's ops do not load, they were built for another torch or Python: {why}"
        return [Finding("mmcv ops", "do not load", "compiled", problem, line)]
    return [Finding("mmcv ops", "compiled", "compiled")]


def _unloadable(machine: Machine) -> list[Finding]:
    findings = []
    for module, why in machine.broken.items():
        if module in ("cv2", "mmcv.ops"):  # have rows of their own
            continue
        package = PACKAGE_OF.get(module, module)
        line = f"pip install --force-reinstall --no-deps '{package}{(CORE | HOST | OPTIONAL)[package]}'"
        if module == "pkg_resources":
            line = "pip install 'setuptools<82'"
        elif module == "mmdet" and not machine.has_ops:
            continue  # follows from the ops
        findings.append(Finding(module, "does not load", "", f"{module} cannot be imported: {why}", line))
    return findings


def _gpu(gpu: Gpu) -> Finding:
    built = f"torch built for CUDA {gpu.cuda}" if gpu.cuda else "torch built for the CPU"
    if gpu.names:
        return Finding("GPU", "; ".join(gpu.names), built)
    if not gpu.has_device:
        return Finding("GPU", "none, everything runs on the CPU", built)
    if gpu.cuda is None:
        line = f"pip uninstall -y torch torchvision && {line_for('torch')} && {line_for('torchvision')}"
        return Finding("GPU", "not used", built, "there is a GPU, but this torch is built for the CPU", line)
    problem = f"there is a GPU, but torch cannot use it: its driver is too old for CUDA {gpu.cuda}, or not loaded"
    return Finding(
        "GPU", "not used", built, problem, "nvidia-smi   (shows the driver; update it, or take an older torch)"
    )


def _folder(what: str, path: Path) -> Finding:
    existing = next((p for p in (path, *path.parents) if p.exists()), path)
    if existing.is_dir() and os.access(existing, os.W_OK):
        return Finding(what, f"{path} ({_size(path) / 2**20:.0f} MiB)" if path.exists() else f"{path} (nothing yet)")
    variable = "RAR_MMDET_CACHE" if what == "memories" else "HF_HOME"
    problem = f"{path} cannot be written"
    return Finding(what, str(path), "", problem, f"export {variable}=/a/folder/you/can/write")


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):  # passes over folders that may not be read
        for file in files:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += os.lstat(os.path.join(place, file)).st_size
    return total


# Imports one module after the other and says how it went, one line of JSON each; a `start` alone tells which killed it.
_PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps(["start", name]), flush=True)
    try:
        importlib.import_module(name)
        print(json.dumps(["good", name]), flush=True)
    except BaseException as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(json.dumps(["bad", name, f"{type(error).__name__}: {why}"]), flush=True)
if "torch" in sys.modules:
    import torch
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.cuda.get_device_properties(i) for i in range(count)]
    names = [f"{d.name}, {d.total_memory / 2**30:.0f} GiB, sm_{d.major}{d.minor}" for d in devices]
    print(json.dumps(["gpu", torch.version.cuda, names]), flush=True)
"""


def look() -> Machine:
    """This machine. Imports the packages in a process of its own, which may die; takes some 10 seconds."""
    copies = _copies(metadata.distributions())
    modules = [*CORE_MODULES, *OPTIONAL_MODULES, *(HOST_MODULES if {"mmcv", "mmdet"} & set(copies) else ())]
    installed = [m for m in modules if _is_installed(PACKAGE_OF.get(m, m), copies)]
    probe = subprocess.run([sys.executable, "-c", _PROBE, *installed], capture_output=True, text=True, check=False)
    broken, gpu = read_probe(probe.stdout.splitlines(), probe.returncode)
    has_ops = "mmcv" in copies and mmcv_has_ops()
    return Machine(sys.version_info[:3], copies, broken, has_ops, gpu, _folders(), _left_overs())


def read_probe(lines: Sequence[str], return_code: int) -> tuple[dict[str, str], Gpu]:
    """What the probing process wrote: modules that do not load, and the GPU."""
    broken: dict[str, str] = {}
    gpu = Gpu(has_device=Path("/dev/nvidia0").exists())
    for line in lines:
        if not line.startswith('["'):  # some package prints at import
            continue
        kind, *values = json.loads(line)
        if kind == "start":
            broken[values[0]] = f"the process died with status {return_code} while importing it"
        elif kind == "good":
            del broken[values[0]]
        elif kind == "bad":
            broken[values[0]] = values[1]
        elif kind == "gpu":
            gpu = Gpu(gpu.has_device, values[0], tuple(values[1]))
    return broken, gpu


def _copies(distributions: Iterable[metadata.Distribution]) -> dict[str, tuple[Copy, ...]]:
    found: dict[str, dict[Copy, None]] = {}  # a dict keeps the order and drops folders that are searched twice
    for distribution in distributions:
        if not any(distribution.read_text(file) for file in ("METADATA", "PKG-INFO", "")):
            continue  # see `_left_overs`; reading its metadata would fail
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        if name and version:
            copy = Copy(version, str(distribution.locate_file("")))
            found.setdefault(_normalised(name), {})[copy] = None
    return {name: tuple(copies) for name, copies in found.items()}


def _left_overs() -> tuple[Path, ...]:
    records = [record for place in dict.fromkeys(sys.path) for record in Path(place).glob("*.dist-info")]
    return tuple(sorted(record for record in records if not (record / "METADATA").is_file()))


def _is_installed(package: str, copies: Mapping[str, tuple[Copy, ...]]) -> bool:
    names = OPENCV if package == "opencv-python" else (package,)
    return any(_normalised(name) in copies for name in names)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _folders() -> dict[str, Path]:
    rar = Path(os.environ.get("RAR_MMDET_CACHE", "~/.cache/rar_mmdet")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    return {"memories": rar, "hub cache": hub.expanduser()}


def weights_of_configs() -> list[tuple[str, list[str]]]:
    """The encoders and rankers that the shipped configs name, and the lines about what each lacks on this machine."""
    from mmengine.config import Config

    from rar_mmdet.components import build_component
    from rar_mmdet.files.shipped import shipped

    root = shipped("configs")
    found = []
    for file in sorted([*root.glob("_base_/retrievers/*.py"), *root.glob("_base_/rankers/*.py")]):
        config = Config.fromfile(str(file))
        for key in ("encoder", "ranker"):
            if key in config and not config[key].get("base_url"):  # a server has its weights elsewhere
                lines = build_component(config[key], key).missing_assets()
                found.append((f"{key} of {file.relative_to(root)}", lines))
    return found


def render_table(findings: Sequence[Finding]) -> str:
    """What is here against what is supported, one row for each finding."""
    name, found = (max(len(getattr(f, key)) for f in findings) for key in ("name", "found"))
    found = min(found, 40)
    lines = [f"{'':<{name}}  {'here':<{found}}  supported"]
    for f in findings:
        mark = "  <-- problem" if f.problem else ""
        lines.append(f"{f.name:<{name}}  {f.found:<{found}}  {f.wanted}{mark}".rstrip())
    return "\n".join(lines)


def render_problems(findings: Sequence[Finding]) -> str:
    """Each problem with the line to type."""
    problems = [f for f in findings if f.problem]
    if not problems:
        return "no problem found"
    lines = [f"{number}. {f.problem}\n   type: {f.line}" for number, f in enumerate(problems, 1)]
    return "\n\n".join([*lines, f"problems: {len(problems)}; type the lines above in their order"])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, the weights and the problems; 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="rar-mmdet doctor", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    args = parser.parse_args(argv)
    machine = look()
    findings = examine(machine)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print(f"rar_mmdet {__version__} in {Path(__file__).parent}\n\n{render_table(findings)}\n")
        print_weights(machine)
        print(render_problems(findings))
    return int(any(finding.problem for finding in findings))


def print_weights(machine: Machine) -> None:
    """Weights are no part of an installation: what is not here is told, and no problem."""
    absent = [name for name in CORE if not machine.version_of(name) and not name.startswith("opencv")]
    if machine.broken or absent or not machine.opencv_builds():
        print("weights: not looked at, what is missing or does not load comes first\n")
        return
    print("weights that the shipped configs name")
    for what, lines in weights_of_configs():
        print(f"  {what}: {'here' if not lines else 'not here'}")
        for line in lines:
            print("    " + line.replace("\n", "\n    "))
    print()
