"""Build the memory a config describes: text entries from its names, image entries from annotated photos.

Text only, into the cache that tools/test.py reads (so that a test run starts at once):

    python tools/build_memory.py configs/demo/rar_demo.py

With exemplars, into a folder of your own, to be used as `memory=dict(type="TextMemory", path="DIR")`:

    python tools/build_memory.py configs/demo/rar_demo.py --out work_dirs/memory_4shot \\
        --shots 4 --annotations data/demo/annotations/lvis_demo_train.json --images data/demo

Another vocabulary without encoding the rest again:

    python tools/build_memory.py CONFIG --update DIR --add "red panda" --remove cup --out NEW_DIR

A stopped build goes on where it was when the same command is given again. Exit status 2: the message says what to do.
`rar-mmdet memory build` is the same command.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rar_mmdet.components import retriever_of
from rar_mmdet.errors import MissingAssetError, VocabularyError
from rar_mmdet.files.vocabulary import clean_name
from rar_mmdet.memory import (
    CategoryMemory,
    FaissMemory,
    TextMemory,
    encode_exemplars,
    load_memory,
    read_exemplars,
    sample_exemplars,
    save_memory,
)
from rar_mmdet.recognizer import RegionRecognizer

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="rar-mmdet memory build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config whose encoder, cropper, memory and vocabulary are used")
    parser.add_argument("--out", type=Path, help="folder to write; without it the cache of tools/test.py is filled")
    parser.add_argument("--names", help="names file (.txt) or annotation file (.json) instead of the config's names")
    parser.add_argument("--templates", help="template set or one sentence with {}, instead of the config's")
    parser.add_argument("--kind", choices=["text", "image", "both"], help="entries to build; with --shots 'both'")
    shots = parser.add_argument_group("image entries")
    shots.add_argument("--shots", type=int, help="exemplars per category")
    shots.add_argument("--annotations", type=Path, help="COCO, LVIS or V3Det annotation file with their boxes")
    shots.add_argument("--images", type=Path, help="folder its file names (or the end of its coco_url) start from")
    shots.add_argument("--seed", type=int, default=0, help="which exemplars are drawn")
    change = parser.add_argument_group("change a memory")
    change.add_argument("--update", type=Path, help="memory whose entries are kept; only new names are encoded")
    change.add_argument("--add", nargs="+", default=[], metavar="NAME", help="names to append")
    change.add_argument("--remove", nargs="+", default=[], metavar="NAME", help="names to drop")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override config keys, as in tools/test.py"
    )
    args = parser.parse_args(argv)
    args.kind = args.kind or ("both" if args.shots else "text")
    if args.kind != "text" and not (args.shots and args.annotations and args.images):
        parser.error("image entries need --shots N --annotations FILE --images FOLDER")
    if (args.kind != "text" or args.update) and args.out is None:
        parser.error("give --out DIR: only plain text memories live in the cache")
    if (args.add or args.remove) and args.update is None:
        parser.error("--add and --remove change a memory; name it with --update DIR")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Build, and say where it is."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    memory, folder = build(args, retriever_of(args.config, args.cfg_options, args.names))
    print(f"{memory!r}\nwritten to {folder}")
    return 0


def build(args: argparse.Namespace, recognizer: RegionRecognizer) -> tuple[CategoryMemory, Path]:
    """The memory the command line asks for, and its folder."""
    encoder, names, recipe = recognizer.encoder, recognizer.category_names, recipe_of(recognizer, args.templates)
    missing = encoder.missing_assets()
    if missing:
        raise MissingAssetError("missing:\n" + "\n".join(missing))
    if args.out is None:
        return recipe.prepare(encoder, names), recipe.folder(encoder, names)
    memory: CategoryMemory | None = None
    if args.update is not None:
        old = load_memory(args.update)
        names = tuple(changed_names(old.category_names, args.add, args.remove))
        memory = recipe.update(old, encoder, names)
    elif args.kind != "image":
        memory = recipe.prepare(encoder, names)
    parts = args.out.with_name(args.out.name + ".parts")
    if args.kind != "text":
        memory = add_exemplars(args, recognizer, recipe, memory, names, parts)
    assert memory is not None, "an image memory is made by add_exemplars"
    folder = save_memory(memory, args.out)
    shutil.rmtree(parts, ignore_errors=True)
    return memory, folder


def recipe_of(recognizer: RegionRecognizer, templates: str | None = None) -> TextMemory:
    """The config's recipe for texts, with the command line's templates; what is being built cannot be read."""
    source = recognizer.memory_source
    if isinstance(source, FaissMemory):
        source = source.source
    recipe = source if isinstance(source, TextMemory) else TextMemory()
    return replace(recipe, path=None, templates=templates or recipe.templates)


def changed_names(names: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> list[str]:
    """`names` without `remove`, in any spelling, and with `add` at the end.

    Raises:
        VocabularyError: a name to remove is not there, or is there more than once.
    """
    kept = list(names)
    for name in remove:
        places = [place for place, other in enumerate(kept) if clean_name(other) == clean_name(name)]
        if len(places) != 1:
            raise VocabularyError(
                f"--remove {name!r}: the memory has {len(places)} categories of that name, expected one. "
                "tools/inspect_memory.py DIR --near NAME shows its names"
            )
        del kept[places[0]]
    return [*kept, *add]


def add_exemplars(
    args: argparse.Namespace,
    recognizer: RegionRecognizer,
    recipe: TextMemory,
    memory: CategoryMemory | None,
    names: Sequence[str],
    parts: Path,
) -> CategoryMemory:
    """The memory with image entries, or one of image entries alone."""
    exemplars = sample_exemplars(read_exemplars(args.annotations, args.images, names), shots=args.shots, seed=args.seed)
    cropper = recognizer.cropper
    entries = encode_exemplars(recognizer.encoder, cropper.crop, exemplars, parts_dir=parts, key=repr(cropper))
    dataset = f"{args.annotations.name}: up to {args.shots} exemplars per category, seed {args.seed}"
    if memory is None:
        return CategoryMemory(entries, names, info=recipe.info(recognizer.encoder, dataset))
    return memory.with_entries(entries, dataset)
