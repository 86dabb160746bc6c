"""Build the memory a config describes: text entries from its names, image entries from annotated photos.

Text only, into the cache that tools/test.py reads (so that a test run starts at once):

    python tools/build_memory.py configs/demo/rar_demo.py

With exemplars, into a folder of your own, to be used as `memory=dict(type="TextMemory", path="DIR")`:

    python tools/build_memory.py configs/demo/rar_demo.py --out work_dirs/memory_4shot \\
        --shots 4 --annotations data/demo/annotations/lvis_demo_train.json --images data/demo

Another vocabulary without encoding the rest again:

    python tools/build_memory.py CONFIG --update DIR --add "red panda" --remove cup --out NEW_DIR

A stopped build goes on where it was when the same command is given again. Exit status 2: the message says what to do.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rar_mmdet.errors import RarError, VocabularyError
from rar_mmdet.memory import (
    CategoryMemory,
    IndexSpec,
    TextMemory,
    encode_exemplars,
    resolve_templates,
    sample_exemplars,
)

EXIT_USER_ERROR = 2


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument("--index", default="torch", help="index saved with it: torch, flat, hnsw, pca-hnsw, a factory")
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="KEY=VALUE", help="override config keys, as in tools/test.py"
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
    try:
        recognizer, recipe = load_recognizer(args.config, args.cfg_options, args.names)
        memory, folder = build(args, recognizer, recipe)
    except (RarError, ValueError) as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    print(f"{memory!r}\nwritten to {folder}")
    return 0


def load_recognizer(
    config_file: str, options: Sequence[str] | None = None, names: str | None = None
) -> tuple[Any, TextMemory]:
    """The recogniser of a config file and the recipe of its memory; nothing is loaded but the names."""
    from mmengine.config import Config, DictAction

    from rar_mmdet.components import build_component, build_recognizer

    config = Config.fromfile(config_file)
    if options:
        parser = argparse.ArgumentParser()
        parser.add_argument("--cfg-options", nargs="+", action=DictAction)
        config.merge_from_dict(parser.parse_args(["--cfg-options", *options]).cfg_options)
    settings = find_recognizer(config.model)
    if settings is None:
        raise VocabularyError(f"{config_file} has no `recognizer` in its model")
    settings = dict(settings) | ({"vocabulary": names} if names else {})
    settings.pop("ranker", None)  # not needed to build a memory, and its weights may not be here
    settings.pop("ranker_cropper", None)
    recipe = build_component(settings["memory"], "recognizer.memory")
    return build_recognizer(settings), recipe if isinstance(recipe, TextMemory) else TextMemory()


def find_recognizer(model: Any) -> Any:
    """The `recognizer` dict, wherever in the model it is."""
    if isinstance(model, dict):
        if "recognizer" in model:
            return model["recognizer"]
        for value in model.values():
            found = find_recognizer(value)
            if found is not None:
                return found
    return None


def build(args: argparse.Namespace, recognizer: Any, recipe: TextMemory) -> tuple[CategoryMemory, Path]:
    """The memory the command line asks for, and its folder."""
    encoder, names = recognizer.encoder, list(recognizer.category_names)
    missing = encoder.missing_assets()
    if missing:
        raise VocabularyError("missing:\n" + "\n".join(missing))
    recipe = adapted(recipe, args)
    if args.out is None:
        memory = recipe.prepare(encoder, names)
        return memory, recipe.folder(encoder, names)
    if args.update is not None:
        old = CategoryMemory.load(args.update)
        memory = recipe.update(old, encoder, changed_names(list(old.category_names), args.add, args.remove))
        names = list(memory.category_names)
    elif args.kind == "image":
        memory = None
    else:
        memory = recipe.prepare(encoder, names)
    parts = args.out.with_name(args.out.name + ".parts")
    if args.kind != "text":
        memory = add_exemplars(args, recognizer, recipe, memory, names, parts)
    assert memory is not None
    folder = CategoryMemory(memory.entries, names, info=memory.info, index=IndexSpec(args.index)).save(args.out)
    shutil.rmtree(parts, ignore_errors=True)
    return memory, folder


def adapted(recipe: TextMemory, args: argparse.Namespace) -> TextMemory:
    """The config's recipe, with the command line's templates."""
    recipe.path = None  # what is being built cannot be read
    if args.templates:
        recipe.templates = resolve_templates(args.templates)
    return recipe


def changed_names(names: list[str], add: Sequence[str], remove: Sequence[str]) -> list[str]:
    """`names` without `remove` and with `add` at the end.

    Raises:
        VocabularyError: a name to remove is not there, or is there more than once.
    """
    for name in remove:
        if names.count(name) != 1:
            raise VocabularyError(
                f"--remove {name!r}: the memory has {names.count(name)} categories of that name, not one"
            )
        names.remove(name)
    return [*names, *add]


def add_exemplars(
    args: argparse.Namespace,
    recognizer: Any,
    recipe: TextMemory,
    memory: CategoryMemory | None,
    names: Sequence[str],
    parts: Path,
) -> CategoryMemory:
    """The memory with image entries, or one of image entries alone."""
    exemplars = sample_exemplars(args.annotations, args.images, names, shots=args.shots, seed=args.seed)
    cropper = recognizer.cropper
    settings = repr(cropper)
    entries = encode_exemplars(recognizer.encoder, cropper.crop, exemplars, parts_dir=parts, key=settings)
    dataset = f"{args.annotations.name}: up to {args.shots} exemplars per category, seed {args.seed}"
    if memory is None:
        return CategoryMemory(entries, names, info=recipe.info(recognizer.encoder, dataset))
    return memory.with_entries(entries, dataset)


if __name__ == "__main__":
    raise SystemExit(main())
