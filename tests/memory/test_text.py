"""Prompts, cleaning, cache, refusals."""

from __future__ import annotations

import pickle
import re
import shutil
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rar_mmdet.errors import ConfigError, MemoryMismatchError, VocabularyError
from rar_mmdet.files import clean_name
from rar_mmdet.memory import TEMPLATE_SETS, FaissMemory, TextMemory, encode, resolve_templates, save_memory
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
    ("templates", "message"),
    [
        pytest.param("sinlge", "no template set 'sinlge'; there are single, clip7", id="misspelt"),
        pytest.param(["a photo"], "must hold `{}` exactly once", id="no-place"),
        pytest.param([], "empty list", id="empty"),
    ],
)
def test_bad_templates_are_refused(templates: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
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
from pathlib import Path
from rar_mmdet.memory import FaissMemory, TextMemory, faiss_index
from rar_mmdet.testing import FakeEncoder

class Counting(FakeEncoder):
    num_texts = 0
    def encode_texts(self, texts):
        self.num_texts += len(texts)
        return super().encode_texts(texts)

indexes, build_index = [], faiss_index.build_index
faiss_index.build_index = lambda *args: indexes.append(1) or build_index(*args)
encoder, folder = Counting(), Path(sys.argv[1])
source = TextMemory(templates="clip7", cache_dir=folder / "memory")
FaissMemory(source, "HNSW8", cache_dir=folder / "faiss").prepare(encoder, [f"n{i}" for i in range(300)])
print(encoder.num_texts, len(indexes))
"""


def test_several_processes_build_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [[int(number) for number in worker.communicate(timeout=600)[0].split()] for worker in workers]
    assert sorted(texts for texts, _ in told) == [0, 0, 2100]
    assert sorted(indexes for _, indexes in told) == [0, 0, 1]


def test_eight_threads_build_once(tmp_path: Path) -> None:
    encoder, names = CountingEncoder(), [f"n{i}" for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        recipe = TextMemory(cache_dir=tmp_path)
        memories = list(pool.map(lambda _: recipe.prepare(encoder, names), range(8)))
    assert encoder.num_texts == 100
    assert all(torch.equal(memory.entries.vectors, memories[0].entries.vectors) for memory in memories)


SPELLINGS = [
    ["fire hydrant", "red panda", "crème brûlée"],
    ["fire_hydrant", "red_panda", "crème_brûlée"],
    ["\ufefffire hydrant", "red panda", "crème brûlée"],
    [" fire hydrant", "red  panda ", "crème\tbrûlée"],
    [unicodedata.normalize("NFD", name) for name in ("fire hydrant", "red panda", "crème brûlée")],
]


def test_names_in_any_spelling_share_a_cached_memory(tmp_path: Path) -> None:
    built = 0
    for names in [*SPELLINGS, *SPELLINGS]:
        encoder = CountingEncoder()
        memory = TextMemory(cache_dir=tmp_path).prepare(encoder, names)
        assert memory.category_names == tuple(names)
        built += encoder.num_texts
    assert built == 3
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_a_memory_of_a_path_takes_names_in_any_spelling(tmp_path: Path) -> None:
    save_memory(TextMemory(cache_dir=tmp_path).prepare(FakeEncoder(), SPELLINGS[0]), tmp_path / "own")
    for names in SPELLINGS:
        assert TextMemory(path=tmp_path / "own").prepare(FakeEncoder(), names).category_names == tuple(names)


def test_without_qualifiers_equal_prompts_are_still_other_names(tmp_path: Path) -> None:
    """Both lists give the prompt "bow"; a memory of one must not be taken, or refused, for the other."""
    recipe = TextMemory(cache_dir=tmp_path, keep_qualifier=False)
    for names in (["bow_(weapon)"], ["bow"], ["bow_(weapon)"], ["bow"]):
        assert recipe.prepare(FakeEncoder(), names).category_names == tuple(names)
    encoder = CountingEncoder()
    recipe.prepare(encoder, ["bow (weapon)"])
    assert encoder.num_texts == 0


def test_a_cached_memory_that_does_not_fit_is_built_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cache that another program, a hand or a clash of keys filled must not lock anybody out."""
    recipe = TextMemory(cache_dir=tmp_path)
    folder = recipe.folder(FakeEncoder(), NAMES)
    for other in (
        TextMemory(cache_dir=tmp_path / "x").prepare(FakeEncoder(seed=1), NAMES),
        TextMemory(cache_dir=tmp_path / "x").prepare(FakeEncoder(), [*NAMES[:-1], "other"]),
    ):
        save_memory(other, folder)
        encoder = CountingEncoder()
        assert recipe.prepare(encoder, NAMES).info == recipe.info(encoder)
        assert encoder.num_texts == 6
        assert "building the cached memory anew" in caplog.text


@pytest.mark.parametrize("damage", ["rubbish", "no manifest", "no vectors", "empty", "file"])
def test_every_damage_of_the_cache_is_mended(tmp_path: Path, damage: str) -> None:
    recipe = TextMemory(cache_dir=tmp_path)
    first = recipe.prepare(FakeEncoder(), NAMES)
    folder = recipe.folder(FakeEncoder(), NAMES)
    if damage == "rubbish":
        (folder / "manifest.json").write_bytes(b"rubbish")
    elif damage in ("empty", "file"):
        shutil.rmtree(folder)
        folder.mkdir() if damage == "empty" else folder.touch()
    else:
        (folder / {"no manifest": "manifest.json", "no vectors": "vectors.safetensors"}[damage]).unlink()
    again = recipe.prepare(FakeEncoder(), NAMES)
    assert torch.equal(first.entries.vectors, again.entries.vectors)
    if damage != "file":  # what is no folder is not ours to replace
        encoder = CountingEncoder()
        recipe.prepare(encoder, NAMES)
        assert encoder.num_texts == 0


def test_a_cache_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    memory = TextMemory(cache_dir=tmp_path / "file" / "cache").prepare(FakeEncoder(), NAMES)
    assert memory.num_categories == 7
    assert "cannot be kept in" in caplog.text
    assert "set cache_dir or RAR_MMDET_CACHE" in caplog.text


def test_an_autocast_around_a_build_changes_nothing(tmp_path: Path) -> None:
    class Projecting(FakeEncoder):
        """An encoder of a user that autocast would move."""

        def encode_texts(self, texts: list[str]) -> torch.Tensor:
            return torch.nn.functional.normalize(super().encode_texts(texts) @ torch.eye(16), dim=1)

    before = TextMemory(cache_dir=tmp_path / "a", templates="clip7").prepare(Projecting(), NAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = TextMemory(cache_dir=tmp_path / "b", templates="clip7").prepare(Projecting(), NAMES)
    assert torch.equal(before.entries.vectors, inside.entries.vectors)


def test_temperature_of_a_recipe(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    queries = encoder.encode_texts(["a photo of a red star", "x"])
    for settings in ({"cache_dir": tmp_path}, {"path": tmp_path / "own"}):
        if "path" in settings:
            save_memory(TextMemory(cache_dir=tmp_path).prepare(encoder, NAMES), tmp_path / "own")
        memory = TextMemory(temperature=0.5, **settings).prepare(encoder, NAMES)
        found = memory.search(queries, 7)
        probs = torch.softmax(queries @ memory.entries.vectors.T / 0.5, dim=1)
        torch.testing.assert_close(found.probs, probs.sort(dim=1, descending=True).values)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2  # the vectors do not depend on it


@pytest.mark.parametrize(
    ("encoder", "settings", "names", "message"),
    [
        pytest.param(FakeEncoder(seed=1), {}, NAMES, "built by encoder fake-16-0, .* is fake-16-1", id="encoder"),
        pytest.param(
            FakeEncoder(), {"templates": "clip7"}, NAMES, "built with templates=.*says .* and 5 more", id="templates"
        ),
        pytest.param(
            FakeEncoder(), {"ensemble": "separate"}, NAMES, "built with ensemble='average'.*'separate'", id="ensemble"
        ),
        pytest.param(
            FakeEncoder(), {"keep_qualifier": False}, NAMES, "with keep_qualifier=True.*says False", id="qualifier"
        ),
        pytest.param(
            FakeEncoder(), {}, [*NAMES, "new"], "own has 7 names, this config 8 classes; 'new' is in this", id="more"
        ),
        pytest.param(FakeEncoder(), {}, NAMES[::-1], "another order .* 6 of 7 labels differ; label 0 is", id="order"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused(
    tmp_path: Path, encoder: FakeEncoder, settings: dict, names: list[str], message: str
) -> None:
    save_memory(TextMemory(cache_dir=tmp_path).prepare(FakeEncoder(), NAMES), tmp_path / "own")
    assert TextMemory(path=tmp_path / "own").prepare(FakeEncoder(), NAMES).num_categories == 7
    said = {"templates": "single", "ensemble": "average", "keep_qualifier": True}
    assert TextMemory(path=tmp_path / "own", **said).prepare(FakeEncoder(), NAMES).num_categories == 7
    with pytest.raises(MemoryMismatchError, match=message):
        TextMemory(path=tmp_path / "own", **settings).prepare(encoder, names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"ensemble": "sum"}, "ensemble must be 'average' or 'separate', got 'sum'", id="ensemble"),
        pytest.param({"aggregation": "sum"}, "aggregation must be 'max' or 'mean'", id="aggregation"),
        pytest.param({"text_weight": 2.0}, r"text_weight must be in \[0, 1\]", id="text_weight"),
        pytest.param({"temperature": 0.0}, "temperature must be a positive number", id="temperature"),
        pytest.param({"synonyms": "all", "annotations": "a"}, "synonyms must be True, False, 'desc", id="synonyms"),
        pytest.param(
            {"synonyms": True}, "synonyms=True come from an annotation file; give `annotations`", id="no-file"
        ),
        pytest.param(
            {"path": "x", "synonyms": True}, "path='x' is used as it is.*would do nothing", id="path-synonyms"
        ),
        pytest.param({"path": "x", "annotations": "no.json"}, "path='x' is used as it is.*Drop", id="path-annotations"),
    ],
)
def test_settings_that_mean_nothing_or_contradict_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextMemory(**settings)


def test_missing_assets_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TextMemory(cache_dir=tmp_path).missing_assets() == []
    (line,) = TextMemory(path=tmp_path / "no").missing_assets()
    assert line.startswith(f"memory folder {tmp_path / 'no'}")
    assert "tools/build_memory.py CONFIG --out DIR makes one" in line
    (line,) = TextMemory(annotations=tmp_path / "no.json", synonyms=True).missing_assets()
    assert "no.json (for synonyms)" in line
    faiss = FaissMemory(TextMemory(path=tmp_path / "no"))
    assert len(faiss.missing_assets()) == 1
    monkeypatch.setattr("rar_mmdet.memory.faiss_search.find_spec", lambda name: None)
    assert "pip install faiss-cpu" in faiss.missing_assets()[0]


def test_recipes_are_values() -> None:
    a, b = (TextMemory(templates=["a {}", "the {}"], cache_dir="x") for _ in range(2))
    assert a == b
    assert len({a, b, TextMemory()}) == 2
    assert pickle.loads(pickle.dumps(a)) == a


def test_no_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="category_names is empty"):
        TextMemory(cache_dir=tmp_path).prepare(FakeEncoder(), [])
