"""Look into a memory folder: what it holds, what is near what, what will be confused, what is missing.

    python tools/inspect_memory.py DIR                                    what is in it
    python tools/inspect_memory.py DIR --near "red star"                  nearest categories of one of its names
    python tools/inspect_memory.py DIR --near "a photo of a zebra" --config CONFIG      ... of any text
    python tools/inspect_memory.py DIR --image photo.jpg --config CONFIG  ... of an image file (the whole photo)
    python tools/inspect_memory.py DIR --duplicates 0.97                  pairs of categories closer than that cosine

DIR is a folder of tools/build_memory.py, or one in the cache. Texts that are no names, and images, need the encoder the
memory was built with: give the config that names it. Exit status 2: the message says what to do. `rar-mmdet
memory inspect` is the same command.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from rar_mmdet.components import retriever_of
from rar_mmdet.errors import MissingAssetError, VocabularyError
from rar_mmdet.files.images import read_image
from rar_mmdet.files.vocabulary import clean_name
from rar_mmdet.memory import CategoryMemory, EntryKind, load_memory
from rar_mmdet.memory.memory import check_encoder
from rar_mmdet.recognizer import RegionRecognizer

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="rar-mmdet memory inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("memory", type=Path, help="memory folder")
    parser.add_argument("--near", metavar="TEXT", help="nearest categories of a name in the memory, or of any text")
    parser.add_argument("--image", type=Path, help="nearest categories of an image file")
    parser.add_argument("--duplicates", type=float, metavar="COSINE", help="list pairs at least this similar")
    parser.add_argument("--config", help="config that names the encoder")
    parser.add_argument("--top", type=int, default=10, help="lines per list")
    parser.add_argument("--aggregation", choices=["max", "mean"], default="max", help="over a category's entries")
    args = parser.parse_args(argv)
    if args.top < 1:
        parser.error(f"--top must be at least 1, got {args.top}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was asked for."""
    args = parse_args(argv)
    memory = load_memory(args.memory, aggregation=args.aggregation)
    if args.near is None and args.image is None and args.duplicates is None:
        print_contents(memory, args.top)
    if args.near is not None:
        print_near(memory, text_vectors(memory, args.near, args.config), f"{args.near!r}", args.top)
    if args.image is not None:
        print_near(memory, image_vector(memory, args.image, args.config), str(args.image), args.top)
    if args.duplicates is not None:
        print_duplicates(memory, args.duplicates, args.top)
    return 0


def print_contents(memory: CategoryMemory, top: int) -> None:
    """Counts, origin, repeated names, categories without entries."""
    info, kinds, names = memory.info, memory.entries.kinds, memory.category_names
    print(f"{memory.num_categories} categories, vectors of {memory.dim}")
    print(f"encoder    {info.encoder}, temperature {1 / info.logit_scale:.4g}")
    print(f"templates  {len(info.templates)} ({info.ensemble}): {', '.join(map(repr, info.templates[:3]))}")
    print(f"exemplars  {info.dataset or 'none'}")
    for kind in EntryKind:
        counts = memory.entries.of_kind(kind).counts(memory.num_categories) if (kinds == kind).any() else None
        if counts is None:
            print(f"{kind.name.lower():<10} none")
            continue
        empty = (counts == 0).nonzero().flatten().tolist()
        print(f"{kind.name.lower():<10} {int(counts.sum())} entries, {counts.min()} to {counts.max()} per category")
        if empty:
            shown = ", ".join(f"{i} {names[i]!r}" for i in empty[:top])
            print(f"           {len(empty)} categories have none: {shown}{' ...' if len(empty) > top else ''}")
    same = [(name, n) for name, n in Counter(clean_name(name).casefold() for name in names).most_common() if n > 1]
    if same:
        shown = ", ".join(f"{name!r} x{n}" for name, n in same[:top])
        print(f"repeated   {len(same)} names read alike: {shown}{' ...' if len(same) > top else ''}")


def print_near(memory: CategoryMemory, queries: torch.Tensor, what: str, top: int) -> None:
    """The nearest categories, their cosine and probability."""
    found = memory.search(queries, top)
    print(f"nearest to {what}:")
    for category_id, prob in zip(found.category_ids[0].tolist(), found.probs[0].tolist(), strict=True):
        own = memory.entries.category_ids == category_id
        if not own.any():
            break
        similarity = (queries.cpu() @ memory.entries.vectors[own].T)[0]
        best = int(own.nonzero().flatten()[similarity.argmax()])
        line = f"  {category_id:>6}  {memory.category_names[category_id]:<32} cosine {similarity.max():.4f}"
        print(f"{line}  p {prob:.4f}  ({memory.entries.sources[best]})")


def print_duplicates(memory: CategoryMemory, threshold: float, top: int) -> None:
    """Pairs of different categories whose entries are nearly the same, closest first."""
    pairs: dict[tuple[int, int], float] = {}
    ids, vectors = memory.entries.category_ids, memory.entries.vectors
    for start in range(0, len(vectors), 1024):
        similarity = vectors[start : start + 1024] @ vectors.T
        for row, column in (similarity >= threshold).nonzero().tolist():
            first, second = int(ids[start + row]), int(ids[column])
            if first < second:
                value = float(similarity[row, column])
                pairs[first, second] = max(value, pairs.get((first, second), -1.0))
    print(f"{len(pairs)} pairs of categories with a cosine of at least {threshold}")
    for (first, second), value in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:top]:
        names = memory.category_names
        print(f"  {value:.4f}  {first:>6} {names[first]!r}  ~  {second:>6} {names[second]!r}")


def text_vectors(memory: CategoryMemory, text: str, config: str | None) -> torch.Tensor:
    """The vector of a name of the memory (its first entry), or of any text by the config's encoder."""
    if config is not None:
        return load_parts(memory, config).encoder.encode_texts([text])
    wanted = clean_name(text).casefold()
    for category_id, name in enumerate(memory.category_names):
        rows = (memory.entries.category_ids == category_id).nonzero().flatten()
        if clean_name(name).casefold() == wanted and len(rows):
            return memory.entries.vectors[rows[:1]]
    raise VocabularyError(f"{text!r} is no name of this memory; give --config CONFIG to encode it as a text")


def image_vector(memory: CategoryMemory, path: Path, config: str | None) -> torch.Tensor:
    """The vector of a whole photo, cropped and encoded as regions are."""
    image = read_image(path)
    if config is None:
        raise VocabularyError("--image needs --config CONFIG, whose encoder and cropper are used")
    parts = load_parts(memory, config)
    height, width = image.shape[:2]
    return parts.encoder.encode_images(parts.cropper.crop(image, torch.tensor([[0.0, 0.0, width, height]])))


def load_parts(memory: CategoryMemory, config: str) -> RegionRecognizer:
    """The config's recogniser, if its encoder is the one the memory was built with."""
    recognizer = retriever_of(config)
    missing = recognizer.encoder.missing_assets()
    if missing:
        raise MissingAssetError("missing:\n" + "\n".join(missing))
    check_encoder(memory.info, recognizer.encoder, "this memory")
    return recognizer
