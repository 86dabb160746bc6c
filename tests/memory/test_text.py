"""Prompts, cleaning, cache, refusals."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rar_mmdet.errors import MemoryMismatchError, VocabularyError
from rar_mmdet.memory import TEMPLATE_SETS, TextMemory, clean_name, encode, resolve_templates
from rar_mmdet.testing import FakeEncoder

NAMES = ["cup_(drink)", "red star", "cup_(drink)", 'say "hi"', "a, b [c]", "日本", "x" * 400]


class CountingEncoder(FakeEncoder):
    """Counts texts, and stops after some."""

    def __init__(self, *, stop_after: int | None = None, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.num_texts, self.stop_after = 0, stop_after

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        if self.stop_after is not None and self.num_texts >= self.stop_after:
            raise KeyboardInterrupt
        self.num_texts += len(texts)
        return super().encode_texts(texts)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cup_(drink)", "cup (drink)"),
        ("kitchen_sink", "kitchen sink"),
        ("  a \t b\n", "a b"),
        ("café", "café"),
        ('o\'clock, "x" [y]', 'o\'clock, "x" [y]'),
    ],
)
def test_clean_name(name: str, shown: str) -> None:
    assert clean_name(name) == shown
    assert clean_name(clean_name(name)) == clean_name(name)


def test_clean_name_without_qualifier_and_empty() -> None:
    assert clean_name("bow_(weapon)", keep_qualifier=False) == "bow"
    with pytest.raises(VocabularyError, match="is empty once cleaned"):
        clean_name("__ ")


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        pytest.param("sinlge", "no template set 'sinlge'; there are single, clip7", id="misspelt"),
        pytest.param(["a photo"], "must hold `{}` exactly once", id="no-place"),
        pytest.param([], "empty list", id="empty"),
    ],
)
def test_bad_templates_are_refused(templates: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_templates(templates)  # type: ignore[arg-type]


def test_ensemble_is_the_mean_of_unit_vectors(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    memory = TextMemory(templates="clip7", cache_dir=tmp_path).prepare(encoder, NAMES)
    for row, name in enumerate(NAMES):
        texts = [t.format(clean_name(name)) if "{}" in t else t for t in TEMPLATE_SETS["clip7"]]
        mean = encoder.encode_texts(texts).mean(dim=0)
        torch.testing.assert_close(memory.entries.vectors[row], mean / mean.norm())


def test_separate_prompts_are_entries_of_their_own(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    memory = TextMemory(templates="clip7", ensemble="separate", cache_dir=tmp_path).prepare(encoder, NAMES)
    assert len(memory.entries) == 7 * len(NAMES)
    assert "name: itap of a red star." in list(memory.entries.sources)
    best = memory.search(encoder.encode_texts(["itap of a red star."]), 1)
    assert best.category_ids.item() == 1


def test_repeated_names_share_a_vector_and_keep_their_order(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    memory = TextMemory(cache_dir=tmp_path).prepare(encoder, NAMES)
    found = memory.search(encoder.encode_texts(["a photo of a cup (drink)"]), 2)
    assert found.category_ids.tolist() == [[0, 2]]
    assert found.probs[0, 0] == found.probs[0, 1]


def test_second_use_reads_from_disk(tmp_path: Path) -> None:
    first = CountingEncoder()
    TextMemory(templates="clip7", cache_dir=tmp_path).prepare(first, NAMES)
    assert first.num_texts == 7 * len(set(NAMES))
    for change, built in [({}, 0), ({"templates": "single"}, 6), ({"keep_qualifier": False}, 42)]:
        again = CountingEncoder()
        TextMemory(**({"templates": "clip7", "cache_dir": tmp_path} | change)).prepare(again, NAMES)
        assert again.num_texts == built, change
    other = CountingEncoder(seed=1)
    TextMemory(templates="clip7", cache_dir=tmp_path).prepare(other, NAMES)
    assert other.num_texts == 42


def test_a_killed_build_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PROMPTS_PER_PART", 10)
    names, recipe = [f"n{i}" for i in range(50)], TextMemory(cache_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        recipe.prepare(CountingEncoder(stop_after=30), names)
    rest = CountingEncoder()
    memory = recipe.prepare(rest, names)
    assert rest.num_texts == 20
    torch.testing.assert_close(memory.entries.vectors[7], FakeEncoder().encode_texts(["a photo of a n7"])[0])
    assert not list(tmp_path.glob("*.parts"))


def test_a_damaged_cache_is_built_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = TextMemory(cache_dir=tmp_path)
    recipe.prepare(FakeEncoder(), NAMES)
    next(tmp_path.glob("*/vectors.safetensors")).write_bytes(b"rubbish")
    again = CountingEncoder()
    recipe.prepare(again, NAMES)
    assert again.num_texts == 6
    assert "is damaged" in caplog.text


# Started anew, not forked: a fork of a process in which torch has used its threads waits for them for ever.
BUILD = """
import sys
from rar_mmdet.memory import TextMemory
from rar_mmdet.testing import FakeEncoder

class Counting(FakeEncoder):
    num_texts = 0
    def encode_texts(self, texts):
        self.num_texts += len(texts)
        return super().encode_texts(texts)

encoder = Counting()
TextMemory(templates="clip7", cache_dir=sys.argv[1]).prepare(encoder, [f"n{i}" for i in range(300)])
print(encoder.num_texts)
"""


def test_several_processes_build_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(int(worker.communicate(timeout=120)[0]) for worker in workers) == [0, 0, 2100]


def test_approximate_index_is_built_once_too(tmp_path: Path) -> None:
    recipe = TextMemory(cache_dir=tmp_path, index="HNSW8", ef_search=99)
    recipe.prepare(FakeEncoder(), NAMES)
    memory = recipe.prepare(FakeEncoder(), NAMES)
    assert memory.faiss is not None
    assert memory.faiss.was_read
    assert memory.index.ef_search == 99


@pytest.mark.parametrize(
    ("encoder", "settings", "names", "message"),
    [
        pytest.param(FakeEncoder(seed=1), {}, NAMES, "built by encoder fake-16-0, .* is fake-16-1", id="encoder"),
        pytest.param(
            FakeEncoder(), {"templates": "clip7"}, NAMES, "built with templates .* and 5 more", id="templates"
        ),
        pytest.param(
            FakeEncoder(), {}, [*NAMES, "new"], "holds 7 categories, .* has 8; only in the config: new", id="more"
        ),
        pytest.param(FakeEncoder(), {}, NAMES[::-1], "category 0 is 'cup_.drink.', .* is 'xxx", id="order"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused(
    tmp_path: Path, encoder: FakeEncoder, settings: dict, names: list[str], message: str
) -> None:
    TextMemory(cache_dir=tmp_path).prepare(FakeEncoder(), NAMES).save(tmp_path / "own")
    assert TextMemory(path=tmp_path / "own").prepare(FakeEncoder(), NAMES).num_categories == 7
    with pytest.raises(MemoryMismatchError, match=message):
        TextMemory(path=tmp_path / "own", **settings).prepare(encoder, names)


def test_no_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="category_names is empty"):
        TextMemory(cache_dir=tmp_path).prepare(FakeEncoder(), [])
