"""Rewrite the published InternLM-XComposer2-VL shards (`.bin`) as safetensors, once.

    python tools/convert_xc2.py weights/published --out weights/internlm-xcomposer2-vl-7b

Every tensor is read back and compared by SHA-256 with the one in the source; no pickle code runs (`weights_only`).
A stopped conversion goes on where it was when the same command is given again. The folder then holds the weights
(memory mapped at loading), config.json, a fast tokenizer, and rar_manifest.json with size and SHA-256 of each file.

The source itself is checked against known hashes where they are given (`--sha256`, a file as `sha256sum` writes it),
and always where it is the local hub cache, whose files are named by their hash.

    python tools/convert_xc2.py --verify weights/internlm-xcomposer2-vl-7b      # read everything, compare every hash

Exit status 2: the message says what to do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rar_mmdet.errors import MissingAssetError, RankerLoadError, RarError
from rar_mmdet.rankers.internlm_xc2.checkpoint import (
    MANIFEST,
    check_folder,
    file_sha256,
    is_harmless,
    read_manifest,
    weight_files,
)
from rar_mmdet.rankers.internlm_xc2.processing import load_tokenizer

EXIT_USER_ERROR = 2
PARTIAL = "rar_manifest.partial.json"  # what is done so far; becomes the manifest at the end
COPIED = ("config.json", "generation_config.json", "tokenizer.model", "chat_template.jinja")


@dataclass(frozen=True)
class Piece:
    """One file to write: some tensors of one source shard."""

    source: Path
    names: tuple[str, ...]
    target: str


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python tools/convert_xc2.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, nargs="?", help="folder with the published .bin shards")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--sha256", type=Path, help="expected hashes of the shards: lines of 'HASH  FILE'")
    parser.add_argument("--shard-gb", type=float, default=2.0, help="largest file to write, which bounds memory too")
    parser.add_argument("--verify", type=Path, metavar="DIR", help="only compare a converted folder with its manifest")
    args = parser.parse_args(argv)
    if args.verify is None and (args.source is None or args.out is None):
        parser.error("give a source folder and --out, or --verify DIR")
    return args


def plan(shards: Sequence[Path], limit_bytes: int) -> list[Piece]:
    """Which tensors go into which file. Shapes only: nothing large is read."""
    groups: list[tuple[Path, list[str]]] = []
    owner: dict[str, Path] = {}
    for shard in shards:
        size = 0
        group: list[str] = []
        for name, tensor in sorted(read_shard(shard).items()):
            if name in owner:
                raise RankerLoadError(f"{name} is in {owner[name].name} and in {shard.name}. Download both again.")
            owner[name] = shard
            if group and size + tensor.nbytes > limit_bytes:
                groups.append((shard, group))
                size, group = 0, []
            group.append(name)
            size += tensor.nbytes
        if group:
            groups.append((shard, group))
    if len(groups) == 1:
        return [Piece(groups[0][0], tuple(groups[0][1]), "model.safetensors")]
    return [
        Piece(shard, tuple(names), f"model-{i:05d}-of-{len(groups):05d}.safetensors")
        for i, (shard, names) in enumerate(groups, 1)
    ]


def read_shard(path: Path) -> dict[str, Tensor]:
    """A shard as memory maps, without the constants that are not stored any more."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch has a dozen ways to say so; all mean the file
        raise RankerLoadError(f"{path} is no plain state dict ({error}). Download it again.") from error
    return {name: tensor for name, tensor in state.items() if not is_harmless(name)}


def tensor_sha256(tensor: Tensor) -> str:
    """Of dtype, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def convert_piece(piece: Piece, out: Path) -> dict[str, Any]:
    """Write one file, read it back, compare; its manifest entry."""
    state = read_shard(piece.source)
    tensors = {name: state[name].clone(memory_format=torch.contiguous_format) for name in piece.names}
    expected = {name: tensor_sha256(tensor) for name, tensor in tensors.items()}
    target, temporary = out / piece.target, out / f"{piece.target}.part"
    save_file(tensors, temporary, metadata={"format": "pt"})
    with safe_open(temporary, framework="pt") as file:
        stored = {name: tensor_sha256(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  # no dict
    if stored != expected:
        wrong = sorted(name for name in expected if stored.get(name) != expected[name])
        raise RankerLoadError(f"{temporary}: what was written reads back differently ({wrong[:3]}). Check the disk.")
    os.replace(temporary, target)
    return {"bytes": target.stat().st_size, "sha256": file_sha256(target), "tensors": expected}


def check_source(shards: Sequence[Path], sums: Path | None) -> dict[str, str]:
    """SHA-256 of each shard, compared with what it should be where that is known."""
    wanted = {}
    if sums is not None:
        lines = [line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8").splitlines() if line.strip()]
        wanted = {Path(name.lstrip("* ").strip()).name: digest.lower() for digest, name in lines}
    found = {}
    for shard in shards:
        blob = shard.resolve().name
        cached = blob if shard.is_symlink() and len(blob) == 64 else None
        expected = wanted.get(shard.name, cached)
        found[shard.name] = file_sha256(shard)
        if expected is not None and found[shard.name] != expected:
            raise RankerLoadError(
                f"{shard} has sha256 {found[shard.name]}, expected {expected}: damaged or another version. "
                "Download this shard again."
            )
        print(f"{shard.name}: sha256 {found[shard.name]}{' (as expected)' if expected else ''}")
    return found


def convert(source: Path, out: Path, *, sums: Path | None = None, shard_bytes: int = 2 * 10**9) -> None:
    """The whole folder. Raises RarError with what to do."""
    check_folder(source)
    shards = weight_files(source)
    if shards[0].suffix == ".safetensors":
        raise RankerLoadError(f"{source} holds safetensors already: use it as it is.")
    for name in ("config.json", "tokenizer.model"):
        if not (source / name).is_file():
            raise MissingAssetError(f"{source} lacks {name}. Download it from the same repository into this folder.")
    if out.resolve() == source.resolve():
        raise RankerLoadError(f"--out must be another folder than the source {source}.")
    tokenizer = load_tokenizer(source)
    out.mkdir(parents=True, exist_ok=True)
    sources = check_source(shards, sums)
    pieces = plan(shards, shard_bytes)
    check_index(source, pieces)
    done = resume(out, sources, pieces)
    check_space(out, shards, done)
    for number, piece in enumerate(pieces, 1):
        if piece.target in done:
            print(f"[{number}/{len(pieces)}] {piece.target}: done before")
            continue
        done[piece.target] = convert_piece(piece, out)
        write_json(out / PARTIAL, {"source": sources, "files": done})
        print(f"[{number}/{len(pieces)}] {piece.target}: {len(piece.names)} tensors written and compared")
    tokenizer.save_pretrained(out)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copy(source / name, out / name)
    write_index(out, pieces)
    write_json(out / PARTIAL, {"source": sources, "files": done})
    os.replace(out / PARTIAL, out / MANIFEST)


def check_index(source: Path, pieces: Sequence[Piece]) -> None:
    """Every tensor the index names must be in its shard, and no other."""
    index = source / "pytorch_model.bin.index.json"
    if not index.is_file():
        return
    promised = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    promised = {name: file for name, file in promised.items() if not is_harmless(name)}
    found = {name: piece.source.name for piece in pieces for name in piece.names}
    wrong = sorted(name for name in promised.keys() | found.keys() if promised.get(name) != found.get(name))
    if wrong:
        raise RankerLoadError(f"{index} and the shards disagree about {len(wrong)} tensors ({wrong[:3]}).")


def resume(out: Path, sources: Mapping[str, str], pieces: Sequence[Piece]) -> dict[str, Any]:
    """Manifest entries of files that are done: same source, same tensors, same hash on disk."""
    for name in (PARTIAL, MANIFEST):
        path = out / name
        if not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["source"] != dict(sources):
            raise RankerLoadError(f"{out} was converted from other shards. Give another --out, or remove it.")
        names = {piece.target: set(piece.names) for piece in pieces}
        return {
            target: entry
            for target, entry in record["files"].items()
            if set(entry["tensors"]) == names.get(target)
            and (out / target).is_file()
            and file_sha256(out / target) == entry["sha256"]
        }
    return {}


def check_space(out: Path, shards: Sequence[Path], done: Mapping[str, Any]) -> None:
    """Stop before the disk is full."""
    needed = sum(s.stat().st_size for s in shards) - sum(entry["bytes"] for entry in done.values())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise RankerLoadError(f"{out} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed.")


def write_index(out: Path, pieces: Sequence[Piece]) -> None:
    """What transformers reads to find a tensor; one file needs none."""
    if len(pieces) > 1:
        weight_map = {name: piece.target for piece in pieces for name in piece.names}
        size = sum((out / piece.target).stat().st_size for piece in pieces)
        write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """All or nothing."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def verify(folder: Path) -> Iterator[str]:
    """Lines about a converted folder; raises at the first file that is not as written."""
    entries = read_manifest(folder)
    if not entries:
        raise MissingAssetError(f"{folder} holds no {MANIFEST}: it was not converted, or not to the end.")
    check_folder(folder)
    for name, entry in entries.items():
        digest = file_sha256(folder / name)
        if digest != entry["sha256"]:
            raise RankerLoadError(f"{folder / name} has sha256 {digest}, the manifest says {entry['sha256']}.")
        yield f"{name}: ok"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    args = parse_args(argv)
    try:
        if args.verify is not None:
            for line in verify(args.verify):
                print(line)
        else:
            convert(args.source, args.out, sums=args.sha256, shard_bytes=int(args.shard_gb * 1e9))
            print(f"done: {args.out}")
    except RarError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0
