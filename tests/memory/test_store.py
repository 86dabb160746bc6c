"""The folder on disk: round trip, damage, atomic replacement, schema."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from worlds import INFO, make_entries, make_memory, unit

from rar_mmdet.errors import MemoryMismatchError, MissingAssetError
from rar_mmdet.memory import CategoryMemory, IndexSpec, store

NAMES = ["cup", "cup", 'say "hi"', "a, b [c]", "日本 – naïve", "x" * 400]


def saved(folder: Path, **settings: object) -> CategoryMemory:
    memory = CategoryMemory(make_entries(unit(12, 8), 6, images=0.5), NAMES, info=INFO, **settings)  # type: ignore[arg-type]
    memory.save(folder)
    return memory


@pytest.mark.parametrize("index", ["torch", "Flat", "HNSW8", "PCA4,HNSW8"])
def test_saved_and_loaded_memory_searches_the_same(tmp_path: Path, index: str) -> None:
    memory = saved(tmp_path / "m", index=index)
    loaded = CategoryMemory.load(tmp_path / "m", index=index)
    assert loaded.category_names == tuple(NAMES)
    assert loaded.info == INFO
    assert list(loaded.entries.sources) == list(memory.entries.sources)
    assert torch.equal(loaded.entries.vectors, memory.entries.vectors)
    assert torch.equal(loaded.entries.kinds, memory.entries.kinds)
    a, b = memory.search(unit(5, 8, seed=1), 6), loaded.search(unit(5, 8, seed=1), 6)
    assert torch.equal(a.category_ids, b.category_ids)
    assert torch.equal(a.probs, b.probs)


def test_index_is_read_back_only_where_it_fits(tmp_path: Path) -> None:
    saved(tmp_path / "m", index="HNSW8")
    assert (tmp_path / "m" / "index.faiss").is_file()

    def was_read(**settings: object) -> bool:
        memory = CategoryMemory.load(tmp_path / "m", **settings)  # type: ignore[arg-type]
        assert memory.faiss is not None
        return memory.faiss.was_read

    assert was_read(index="HNSW8")
    assert was_read(index=IndexSpec("HNSW8", ef_search=32))
    assert not was_read(index="HNSW16")
    assert not was_read(index=IndexSpec("HNSW8", ef_construction=20))
    assert not was_read(index="HNSW8", aggregation="mean")


def test_a_flipped_byte_anywhere_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path / "m", index="HNSW8")
    for path in sorted((tmp_path / "m").iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 23)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(MemoryMismatchError, match=r"damaged|schema"):
                CategoryMemory.load(tmp_path / "m")
        path.write_bytes(content)
    CategoryMemory.load(tmp_path / "m")


def test_truncated_and_missing_files_are_named(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    vectors = tmp_path / "m" / "vectors.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-100])
    with pytest.raises(MemoryMismatchError, match="vectors.safetensors is damaged"):
        CategoryMemory.load(tmp_path / "m")
    with pytest.raises(MemoryMismatchError, match="not readable"):
        CategoryMemory.load(tmp_path / "m", verify=False)
    vectors.unlink()
    with pytest.raises(MemoryMismatchError, match="vectors.safetensors is missing"):
        CategoryMemory.load(tmp_path / "m")
    with pytest.raises(MissingAssetError, match="tools/build_memory.py makes one"):
        CategoryMemory.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("version", "advice"), [pytest.param(0, "build the memory anew", id="old"), pytest.param(9, "upgrade", id="new")]
)
def test_other_schemas_are_refused_by_name(tmp_path: Path, version: int, advice: str) -> None:
    saved(tmp_path / "m")
    path = tmp_path / "m" / "manifest.json"
    manifest = json.loads(path.read_bytes()) | {"schema_version": version, "sha256": ""}
    blank = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    path.write_bytes(blank.replace(b'"sha256": ""', f'"sha256": "{hashlib.sha256(blank).hexdigest()}"'.encode()))
    with pytest.raises(MemoryMismatchError, match=f"schema {version}, written by rar_mmdet .*{advice}"):
        CategoryMemory.load(tmp_path / "m")


@pytest.mark.parametrize("line", ["save_file", "rename-old", "rename-new"])
def test_a_killed_writer_leaves_a_usable_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    first = saved(tmp_path / "m")

    class Killed(BaseException):
        """What a signal does: nothing after it runs, not even the clean-up."""

    def die(*args: object, **kwargs: object) -> None:
        raise Killed

    renames = {"rename-old": 0, "rename-new": 1}
    real, calls = store.os.rename, []

    def rename(source: Path, target: Path) -> None:
        if len(calls) == renames[line]:
            raise Killed
        calls.append(source)
        real(source, target)

    if line == "save_file":
        monkeypatch.setattr(store, "save_file", die)
    else:
        monkeypatch.setattr(store.os, "rename", rename)
    monkeypatch.setattr(store.shutil, "rmtree", lambda *a, **k: None)
    with pytest.raises(Killed):
        make_memory(make_entries(unit(9, 8, seed=5), 6), 6).save(tmp_path / "m")
    monkeypatch.undo()
    assert torch.equal(CategoryMemory.load(tmp_path / "m").entries.vectors, first.entries.vectors)
    second = make_memory(make_entries(unit(9, 8, seed=5), 6), 6)
    second.save(tmp_path / "m")
    assert torch.equal(CategoryMemory.load(tmp_path / "m").entries.vectors, second.entries.vectors)


def test_loading_does_not_copy_the_vectors(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    memory = CategoryMemory.load(tmp_path / "m")
    pointer = memory.entries.vectors.untyped_storage().data_ptr()
    mapped = [
        line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "vectors.safetensors" in line
    ]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in mapped]
    assert any(low <= pointer < high for low, high in spans)
