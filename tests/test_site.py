"""The site of the pages builds without a warning, fetches nothing from elsewhere, and no link of it is dead."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """Addresses of a page: those it links to, those it loads, and those it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loads, self.anchors = [], [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif tag == "link" or "src" in attributes:
            self.loads.append(attributes.get("src") or attributes.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("myst_parser", reason="the site is made by the packages of the extra 'docs'")
    pytest.importorskip("mmdet", reason="its pages of the MMDetection face are made from docstrings there")
    out = tmp_path_factory.mktemp("site")
    strict = ["-q", "-W", "--keep-going", "-d", str(out / "trees")]
    command = [sys.executable, "-m", "sphinx", *strict, "docs", str(out / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{done.stderr[-3000:]}\nA page without a place in docs/index.md? Add it there."
    return out / "html"


def test_nothing_is_fetched_and_no_link_is_dead(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    dead = []
    for path, page in pages.items():
        assert not [address for address in page.loads if urlsplit(address).netloc], path
        for address in [*page.links, *page.loads]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else {"", unquote(parts.fragment)}
            if not target.exists() or unquote(parts.fragment) not in anchors:
                dead.append(f"{path.relative_to(site)}: {address}")
    assert not dead
    for style in (site / "_static").rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert "@import" not in text, style
        assert 'url("http' not in text, style
        assert "url(http" not in text, style


def test_docstrings_tell_shapes_and_units(site):
    page = (site / "api" / "recognizer.html").read_text(encoding="utf-8")
    for name in ("rar_mmdet.RegionRecognizer", "rar_mmdet.structures.Shortlist", "rar_mmdet.fusion.LogLikFusion"):
        assert f'id="{name}"' in page, name
    assert "best first" in page  # of a comment beside a field


def test_every_link_of_a_page_is_a_file_where_the_code_is_hosted():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert urlsplit(target).scheme or (page.parent / target).exists(), f"{page.name}: {target}"
