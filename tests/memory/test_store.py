"""The folder on disk: round trip, damage, atomic replacement, schema."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from worlds import INFO, make_entries, make_memory, unit

from rar_mmdet.errors import ConfigError, MemoryMismatchError, MissingAssetError
from rar_mmdet.memory import CategoryMemory, load_memory, save_memory, store

NAMES = ["cup", "cup", 'say "hi"', "a, b [c]", "日本 – naïve", "x" * 400]


def saved(folder: Path, **settings: object) -> CategoryMemory:
    memory = CategoryMemory(make_entries(unit(12, 8), 6, images=0.5), NAMES, info=INFO, **settings)  # type: ignore[arg-type]
    save_memory(memory, folder)
    return memory


@pytest.mark.parametrize("settings", [{}, {"aggregation": "mean", "text_weight": 0.3, "temperature": 0.5}])
def test_saved_and_loaded_memory_searches_the_same(tmp_path: Path, settings: dict) -> None:
    memory = saved(tmp_path / "m", **settings)
    loaded = load_memory(str(tmp_path / "m"), **settings)
    assert loaded.category_names == tuple(NAMES)
    assert loaded.info == INFO
    assert list(loaded.entries.sources) == list(memory.entries.sources)
    assert torch.equal(loaded.entries.vectors, memory.entries.vectors)
    assert torch.equal(loaded.entries.kinds, memory.entries.kinds)
    a, b = memory.search(unit(5, 8, seed=1), 6), loaded.search(unit(5, 8, seed=1), 6)
    assert torch.equal(a.category_ids, b.category_ids)
    assert torch.equal(a.probs, b.probs)


def test_a_flipped_byte_anywhere_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    for path in sorted((tmp_path / "m").iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 23)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(MemoryMismatchError, match=r"damaged|schema"):
                load_memory(tmp_path / "m")
        path.write_bytes(content)
    load_memory(tmp_path / "m")


def test_truncated_and_missing_files_are_named(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    vectors = tmp_path / "m" / "vectors.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-100])
    with pytest.raises(MemoryMismatchError, match="vectors.safetensors is damaged"):
        load_memory(tmp_path / "m")
    with pytest.raises(MemoryMismatchError, match="not readable"):
        load_memory(tmp_path / "m", verify=False)
    vectors.unlink()
    with pytest.raises(MemoryMismatchError, match="vectors.safetensors is missing"):
        load_memory(tmp_path / "m")
    with pytest.raises(MissingAssetError, match="tools/build_memory.py makes one"):
        load_memory(tmp_path / "nothing")


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
        load_memory(tmp_path / "m")


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
        save_memory(make_memory(make_entries(unit(9, 8, seed=5), 6), 6), tmp_path / "m")
    monkeypatch.undo()
    assert torch.equal(load_memory(tmp_path / "m").entries.vectors, first.entries.vectors)
    second = make_memory(make_entries(unit(9, 8, seed=5), 6), 6)
    save_memory(second, tmp_path / "m")
    assert torch.equal(load_memory(tmp_path / "m").entries.vectors, second.entries.vectors)


def test_loading_does_not_copy_the_vectors(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    memory = load_memory(tmp_path / "m")
    pointer = memory.entries.vectors.untyped_storage().data_ptr()
    mapped = [
        line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "vectors.safetensors" in line
    ]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in mapped]
    assert any(low <= pointer < high for low, high in spans)


def rewritten(manifest: dict) -> bytes:
    """A manifest's bytes with the hash they need."""
    blank = json.dumps(manifest | {"sha256": ""}, indent=1, ensure_ascii=False).encode()
    return blank.replace(b'"sha256": ""', f'"sha256": "{hashlib.sha256(blank).hexdigest()}"'.encode())


@pytest.mark.parametrize(
    "change", [{"info": {}}, {"info": {"templates": [], "new": 1}}, {"files": []}, {"category_names": None}]
)
def test_a_manifest_that_lacks_something_is_refused(tmp_path: Path, change: dict) -> None:
    saved(tmp_path / "m")
    path = tmp_path / "m" / "manifest.json"
    path.write_bytes(rewritten(json.loads(path.read_bytes()) | change))
    with pytest.raises(MemoryMismatchError, match="build the memory anew"):
        load_memory(tmp_path / "m")


def test_a_reader_waits_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is away when it looks, and back after its first pause."""
    memory = saved(tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / ".m.old")
    assert torch.equal(load_memory(tmp_path / "m").entries.vectors, memory.entries.vectors)
    (tmp_path / ".m.old").rename(tmp_path / "away")
    pauses = []
    monkeypatch.setattr(store.time, "sleep", lambda _: pauses.append(1) or (tmp_path / "away").rename(tmp_path / "m"))
    assert torch.equal(load_memory(tmp_path / "m").entries.vectors, memory.entries.vectors)
    assert len(pauses) == 1


def test_a_reader_that_needs_longer_than_it_may_wait_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer exchanges the folder under a first try that takes long."""
    saved(tmp_path / "m")
    read, tries = store._read, []

    def slow(*args: object) -> object:
        tries.append(1)
        if len(tries) == 1:
            saved(tmp_path / "m")
            raise MemoryMismatchError("a file is gone")
        return read(*args)

    monkeypatch.setattr(store, "WAIT_FOR_WRITER_S", -1.0)
    monkeypatch.setattr(store, "_read", slow)
    load_memory(tmp_path / "m")
    assert len(tries) == 2


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    (tmp_path / "m" / "manifest.json").unlink()
    (tmp_path / "m" / "manifest.json").mkdir()
    with pytest.raises(MemoryMismatchError, match="manifest.json cannot be read: Is a directory"):
        load_memory(tmp_path / "m")


def test_places_that_cannot_be_read_or_written_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written to .*file/m: .* Give a folder that can be"):
        saved(tmp_path / "file" / "m")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(ConfigError, match="cannot be written to .*No space left on device"):
        saved(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "_read", denied)
    with pytest.raises(MemoryMismatchError, match="m cannot be read: Permission denied"):
        load_memory(tmp_path / "m")


def test_other_folders_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    with pytest.raises(MemoryMismatchError, match="holds something else than a memory .* Give another folder"):
        saved(tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["1.jpg"]
    (tmp_path / "empty").mkdir()
    saved(tmp_path / "empty")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(("tmp", "old"))]


# Started anew, not forked: a fork of a process in which torch has used its threads waits for them for ever.
WRITE_AND_READ = """
import sys, time
import torch
from rar_mmdet.memory import CategoryMemory, Entries, EntryKind, MemoryInfo, load_memory, save_memory

torch.set_num_threads(1)
folder, mark = sys.argv[1], int(sys.argv[2])
vectors = torch.nn.functional.one_hot(torch.full((50,), mark), 8).float()
entries = Entries.sorted(vectors, torch.arange(50), EntryKind.TEXT, [f"of {mark}"] * 50)
own = CategoryMemory(entries, [f"{mark}/{i}" for i in range(50)], info=MemoryInfo(f"writer {mark}", 1.0))
for _ in range(40):
    save_memory(own, folder)
    found = load_memory(folder)
    whose = int(found.info.encoder.split()[1])
    assert found.category_names == tuple(f"{whose}/{i}" for i in range(50))
    assert (found.entries.vectors.argmax(dim=1) == whose).all()
    assert found.entries.sources[49] == f"of {whose}"
"""


def test_three_processes_save_and_load_one_folder(tmp_path: Path) -> None:
    """Whoever reads gets one writer's memory as a whole, and nobody fails."""
    command = [sys.executable, "-c", WRITE_AND_READ, str(tmp_path / "m")]
    workers = [subprocess.Popen([*command, str(mark)], stderr=subprocess.PIPE, text=True) for mark in range(3)]
    errors = [worker.communicate(timeout=600)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], errors
    load_memory(tmp_path / "m")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(("tmp", "old"))]


def test_a_folder_that_cannot_be_written_can_be_read(tmp_path: Path) -> None:
    memory = saved(tmp_path / "m")
    (tmp_path / ".m.lock").unlink()
    for path in (tmp_path / "m", tmp_path):
        path.chmod(0o555)
    try:
        assert torch.equal(load_memory(tmp_path / "m").entries.vectors, memory.entries.vectors)
        assert not (tmp_path / ".m.lock").exists()
    finally:
        tmp_path.chmod(0o755)
        (tmp_path / "m").chmod(0o755)
