"""Find the names of a data set: no list of classes is read, only a few train photos without their labels.

    rar-mmdet names find configs/classification/cub200.py --finder mllm --seeds 1 2 3 4 5 6 7 8 9 10
    rar-mmdet names find configs/classification/cub200.py --finder wordnet --wordnet /usr/share/wordnet
    rar-mmdet names find configs/classification/cub200.py --finder guessed --guesses birds.json --draws birds.json

Writes OUT/LABEL-SEED.json for each draw: the names, what was guessed for which photo, and what was left out. A draw
whose file is there is not made again; a model's answers are kept one by one, so a run that was stopped goes on.
`rar-mmdet classify CONFIG --names OUT/*.json` shows what the names are worth (docs/names.md).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rar_mmdet.classification.command import recipe_of
from rar_mmdet.classification.naming.discovery import Discovery, draw_discovery
from rar_mmdet.classification.naming.finders import NameFinder
from rar_mmdet.classification.naming.found import FoundNames, Merging, read_found, write_found
from rar_mmdet.classification.naming.settings import FINDERS, NamesSettings, Source, make_finder
from rar_mmdet.classification.naming.wordnet import read_nouns
from rar_mmdet.components import read_config
from rar_mmdet.errors import ConfigError, MissingAssetError
from rar_mmdet.memory.cache import default_cache_dir

__all__ = ["find", "main"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "config", type=Path, help="as for `rar-mmdet classify`; its `names` holds the finder's settings"
    )
    parser.add_argument("--finder", required=True, help=f"of {', '.join(FINDERS)}")
    parser.add_argument("--label", help="what tables call the names (default: the finder)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=list(range(1, 11)), help="of the draws of photos (default: 1 to 10)"
    )
    parser.add_argument("--per-class", type=int, default=3, help="photos of each class in a draw (default: 3)")
    parser.add_argument(
        "--draws",
        default="seeded",
        help="'seeded' (ours), 'largest' (among a class's 50 largest files, as FineR), or a JSON file of train photos",
    )
    parser.add_argument("--wordnet", help="dictionary folder, for the finders wordnet and captions")
    parser.add_argument("--synonyms", help="dictionary folder: names with one first sense are one (default: spelling)")
    parser.add_argument("--captions", type=Path, help="file of `rar-mmdet names captions`")
    parser.add_argument("--guesses", type=Path, help="file of FineR's, of FiNDR's, or of your own")
    parser.add_argument(
        "--min-support", type=int, help="photos a name must be guessed for (default: the config's, or 1)"
    )
    parser.add_argument("--any-script", action="store_true", help="keep names in other than Latin letters")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: a GPU if there is one)")
    parser.add_argument("--out", type=Path, help="folder (default: work_dirs/names/CONFIG)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config")
    return parser.parse_args(argv)


def find(
    finder: NameFinder, discovery: Discovery, merging: Merging, file: Path, dataset: Any, label: str | None = None
) -> FoundNames:
    """Names of one draw: read where they are kept, else found and written.

    Raises:
        ConfigError: the file holds names that were found in another way.
        DatasetError: no name is left.
    """
    told = {"finder": finder.name, "label": label or finder.name, **finder.settings()}
    if file.is_file():
        found = read_found(file, dataset)
        expected = FoundNames.settings_of(told, merging)
        if dict(found.finder) != expected or dict(found.discovery) != discovery.describe():
            raise ConfigError(f"{file} holds names found in another way; give another --out or --label, or remove it")
        return found
    found = FoundNames.from_guesses(finder.find(discovery.photos), discovery, told, merging)
    write_found(found, file)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    args = parse_args(argv)
    config = read_config(args.config, args.cfg_options)
    settings = NamesSettings.of(config)
    if args.min_support is not None:
        settings = dataclasses.replace(settings, min_support=args.min_support)
    if args.finder not in FINDERS:
        make_finder(args.finder, None)  # type: ignore[arg-type]  # refused by name, before anything is loaded
    out = args.out or Path("work_dirs") / "names" / args.config.stem
    recipe = recipe_of({key: value for key, value in config.items() if key != "ranker"}, out)
    if missing := recipe.encoder.missing_assets():
        raise MissingAssetError("; ".join(missing))
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe.encoder.load(device)
    nouns = read_nouns(args.wordnet) if args.wordnet else settings.read_nouns()
    merging = Merging(read_nouns(args.synonyms) if args.synonyms else None, settings.min_support, args.any_script)
    source = Source(
        config,
        settings,
        recipe,
        device,
        answers=out / "answers.sqlite",
        cache_dir=default_cache_dir().parent / "photos",
        nouns=nouns,
        captions=args.captions,
        guesses=args.guesses,
    )
    finder = make_finder(args.finder, source)
    label = args.label or args.finder
    for seed in args.seeds if args.draws in ("seeded", "largest") else args.seeds[:1]:
        discovery = draw_discovery(recipe.dataset, per_class=args.per_class, seed=seed, rule=args.draws)
        file = out / f"{label}-{seed}.json"
        found = find(finder, discovery, merging, file, recipe.dataset, label)
        print(f"draw {seed}: {found.describe()}\nwritten to {file}")
    print(f"what they are worth: rar-mmdet classify {args.config} --names {out}/*.json")
    return 0
