"""Every snippet of the README and of the pages runs exactly as printed, on the photos and weights that ship.

A comment before a fence says what it is. `<!-- config -->`: a config file; it is read, and the parts of its recogniser
are built. `<!-- parts -->`: lines of a config, each a part that is built. `<!-- not run: reason -->`: skipped, and the
skip says why. All else runs, in a folder that looks like a checkout.
"""

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?:^<!-- (?P<how>[^\n]*?) -->\n)?^ *```(?P<language>\w+)\n(?P<code>.*?)^ *```$", re.M | re.S)


@dataclass(frozen=True)
class Snippet:
    page: Path
    line: int
    how: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def snippets() -> list[Snippet]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text[: match.start("code")].count("\n")
            found.append(Snippet(page, line, match["how"] or "run", match["language"], match["code"]))
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with what a clone has; what snippets write stays out of this one."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "demo", "docs", "tools", "README.md", "setup.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


def run(command, checkout):
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAR_MMDET_CACHE": str(checkout / "cache"),
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
    }
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("snippet", snippets(), ids=str)
def test_snippet(snippet, checkout):
    if snippet.how.startswith("not run: "):
        pytest.skip(snippet.how)
    if snippet.how == "config":
        check_config(snippet.code, checkout)
    elif snippet.how == "parts":
        check_parts(snippet.code)
    elif snippet.language == "python":
        run([sys.executable, "-c", snippet.code], checkout)
    elif snippet.language == "bash":
        run(["bash", "-euo", "pipefail", "-c", snippet.code], checkout)
    else:
        assert snippet.language in ("text", "json"), f"{snippet}: say what a {snippet.language} fence is"


def check_config(code, checkout):
    """The file is read as MMEngine reads it; every part of its recogniser is built, but no weights are loaded."""
    pytest.importorskip("mmdet")
    from mmengine.config import Config

    from rar_mmdet.components import build_component, find_recognizers

    file = checkout / "snippet_config.py"
    file.write_text(code, encoding="utf-8")
    config = Config.fromfile(file)
    for where, settings in find_recognizers(config.to_dict()):
        for part in ("cropper", "encoder", "vision_encoder", "memory", "ranker"):
            if part in settings:
                default = "RegionCropper" if part == "cropper" else None
                build_component(settings[part], f"{where}.{part}", default_type=default)


def check_parts(code):
    """Each `name=dict(...)` of the fence is built by itself."""
    from rar_mmdet.components import build_component

    calls = re.split(r"^(?=\w+=)", code, flags=re.M)
    for call in filter(str.strip, calls):
        name, value = call.split("=", 1)
        build_component(ast.literal_eval(ast.unparse(_as_literal(ast.parse(value.strip(), mode="eval").body))), name)


def _as_literal(node):
    """`dict(a=1)` as `{"a": 1}`, so that nothing of a page is run for it."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "dict" and not node.args:
        keys = [ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(keys, [_as_literal(keyword.value) for keyword in node.keywords])
    return node


def test_every_page_is_looked_at():
    assert {snippet.page.name for snippet in snippets()} >= {"README.md", "detectors.md", "memory.md", "regions.md"}
