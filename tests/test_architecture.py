"""Imports run one way, and MMDetection is known only at its face."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rar_mmdet"
STAGES = ("regions", "encoders", "memory", "rankers")
FACE = ("models", "datasets", "evaluation", "engine", "visualization", "registry")
# mmengine is pure Python; its Config and its file backends are used, on demand, where files are read.
READS_CONFIGS = ("files", "components", "doctor", "calibration")
# May import: what stands to the right of it in the architecture.
BASE = {"structures", "errors", "boxes", "files"}
ALLOWED = {
    **{stage: {stage, *BASE} for stage in STAGES},
    "files": {"files", "structures", "errors"},
    "fusion": {"fusion", "structures", "errors"},
    "background": {"rankers", "background", *BASE},  # how rankers spell names
    "emission": {"emission", "structures", "errors"},
    "scoring": {"scoring", *BASE},
    # encoders for the loading that every model shares; scoring for its checks of annotated boxes.
    "detectors": {"detectors", "encoders", "scoring", *BASE},
    "testing": {"testing", *STAGES, *BASE},
    "boxes": {"errors"},
    "terminal": set(),
    "structures": {"structures", "errors", "boxes", "drawing"},  # drawing on demand, for `Recognition.draw`
    "drawing": {"drawing", "files"},
    "records": {"records", "structures", "errors"},
    "errors": set(),
    "_host": {"errors"},
    "recognizer": {
        *STAGES,
        "fusion",
        "emission",
        "background",
        "recognizer",
        "components",
        *BASE,
    },  # components on demand
    "components": {*STAGES, "fusion", "emission", "recognizer", "detectors", *BASE},
    "calibration": {
        *STAGES,
        "fusion",
        "emission",
        "recognizer",
        "components",
        "detectors",
        "scoring",
        "calibration",
        *BASE,
    },
    "classification": {
        *STAGES,
        "fusion",
        "emission",
        "recognizer",
        "components",
        "scoring",
        "records",
        "classification",
        *BASE,
    },
    "finetune": {*STAGES, "classification", "components", "drawing", "finetune", *BASE},
    "report": {"report", "records", "scoring", "drawing", "errors", "files"},
    # classification and calibration for what their commands would find missing; engine on demand, for the same.
    "tables": {"tables", "report", "classification", "calibration", "encoders", "components", "engine", *BASE},
    "labelling": {
        *STAGES,
        "fusion",
        "detectors",
        "recognizer",
        "components",
        "records",
        "drawing",
        "scoring",
        "labelling",
        *BASE,
    },
    **{
        command: {*STAGES, "recognizer", "components", command, *BASE} for command in ("build_memory", "inspect_memory")
    },
    "registry": {"components", "_host", "_lvis"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("rar_mmdet.")}
    if room in ALLOWED:
        assert used <= ALLOWED[room], f"{path.name} of room {room!r} imports {sorted(used - ALLOWED[room])}"
    if room not in FACE:
        forbidden = {"mmdet", "mmcv"} | (set() if room in READS_CONFIGS else {"mmengine"})
        hosts = {name.split(".")[0] for name in imports_of(path)} & forbidden
        assert not hosts, f"{path.name} of room {room!r} imports {sorted(hosts)}; only {FACE} may"


def loaded_after(statement: str, modules: tuple[str, ...]) -> str:
    code = f"import sys; {statement}; print([m for m in {modules!r} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_recognizer_needs_no_mmdet():
    assert loaded_after("from rar_mmdet import RegionRecognizer", ("mmdet", "mmengine", "mmcv")) == "[]"


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import rar_mmdet", ("torch", "transformers", "faiss", "open_clip")) == "[]"
