"""Few-shot recognition of whole photos: every training-free classifier alone, and a ranker on it, in one table.

    rar-mmdet classify configs/classification/flowers102.py --shots 1 4 16 --seeds 1 2 3 --rows all

The config names a data set, an encoder and, if you like, a ranker (docs/classification.md). Each photo is encoded once.
OUT gets records/ (one line of JSON per photo), table.txt, summary.json, top_k.png and, with --offered, offered.png; a
run that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rar_mmdet.classification.catalogue import CATALOGUE
from rar_mmdet.classification.dataset import PhotoDataset
from rar_mmdet.classification.experiment import TEXT, WHOLE_TRAIN, FewShotRun, Recipe
from rar_mmdet.classification.naming.classify import classify_names
from rar_mmdet.classification.naming.scores import NamesTable
from rar_mmdet.classification.own_data import read_csv, read_folders
from rar_mmdet.classification.readers import read_dataset
from rar_mmdet.classification.released import DEPTH, RELEASED, share_anywhere
from rar_mmdet.classification.results import RANKED, REORDERED, UNAIDED, Table, draw_offered, draw_top_k
from rar_mmdet.classification.shortlisters import DESCRIPTIONS, SHORTLISTERS, VISION
from rar_mmdet.classification.vectors import read_descriptions
from rar_mmdet.components import asks_a_model, build_component, check_keys, nearest, read_config
from rar_mmdet.errors import ConfigError, MissingAssetError
from rar_mmdet.memory.cache import default_cache_dir
from rar_mmdet.rankers.served import ServedRanker

__all__ = ["main", "recipe_of", "run"]

OWN_DATA: dict[str, Callable[..., PhotoDataset]] = {"folders": read_folders, "csv": read_csv}
KEYS = (
    *("dataset", "encoder", "cropper", "ranker", "ranker_cropper", "fusion", "num_candidates", "descriptions"),
    "vision_encoder",
)
SHAPING_NOTHING = ("cache", "server", "timeout", "max_retries")  # of a ranker's settings, the server's revision apart
CROPPER_TYPE = "RegionCropper"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="for instance configs/classification/flowers102.py")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 4, 16], help="exemplars a class (default: 1 4 16)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of the draws (default: 1 2 3)")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["all"],
        help=f"of {', '.join(SHORTLISTERS)}; with {RANKED} behind it the ranker is put on a row. 'all' (default): each "
        f"alone and, where the config has a ranker, ranked. {UNAIDED}: the ranker over all names, without retrieval. "
        f"{RELEASED}: retrieval as released, photos of one class counted one by one",
    )
    parser.add_argument(
        "--names",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="of `rar-mmdet names find`: recognise by found names instead of the set's own (docs/names.md); draws are "
        "then those of the files, and --rows of text, finer, released, paper, ours, or these with +rar",
    )
    parser.add_argument("--memory", choices=["shots", WHOLE_TRAIN], default="shots", help="exemplars: few, or all")
    parser.add_argument(
        "--top", type=int, default=1, help="a photo is right if the truth is among so many; K is 10 then"
    )
    parser.add_argument("--offered", nargs="+", type=int, metavar="K", help="also: rank K names, the truth among them")
    parser.add_argument(
        "--draws",
        default="seeded",
        help="'seeded' (ours), 'first' (the release's), or a path with {shots} and {seed}, such as "
        "indices/oxford_flowers/shot_{shots}-seed_{seed}.json",
    )
    parser.add_argument("--limit", type=int, help="only so many test photos, a stratified sample")
    parser.add_argument("--tune", action="store_true", help="choose knobs on the val part (never on the test part)")
    parser.add_argument(
        "--budget",
        type=float,
        help="money that a hosted ranker may spend, at its config's prices; the run stops before, and nothing is lost",
    )
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: a GPU if there is one)")
    parser.add_argument("--out", type=Path, help="folder of the run (default: work_dirs/classify/CONFIG)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config")
    return parser.parse_args(argv)


def recipe_of(config: Mapping[str, Any], out: Path) -> Recipe:
    """The parts that a config names; nothing is loaded yet, apart from the lists of the data set.

    Args:
        config: keys `dataset`, `encoder`, and if wanted `cropper`, `ranker`, `ranker_cropper`, `fusion`,
            `num_candidates`, `descriptions` (a JSON file {class name: [sentence, ...]}), `vision_encoder` (an encoder
            that knows no texts, such as DINOv2's).
        out: where the ranker's answers are kept unless its settings say where.

    Raises:
        ConfigError: a key is missing or a value refused.
        DatasetError: the data set is not there, or is another one.
    """
    for key in ("dataset", "encoder"):
        if not isinstance(config.get(key), Mapping):
            raise ConfigError(f"the config needs a dict `{key}`, with a `type`; docs/classification.md shows one")
    settings = {key: config[key] for key in KEYS if config.get(key) is not None}
    if asks_a_model(settings.get("ranker")):
        settings["ranker"] = {"cache": str(out / "answers.sqlite"), **settings["ranker"]}
    parts = {
        key: build_component(value, key, CROPPER_TYPE if "cropper" in key else None)
        for key, value in settings.items()
        if key not in ("dataset", "descriptions")
    }
    dataset = _read(settings["dataset"])
    if "descriptions" in settings:
        parts["descriptions"] = read_descriptions(settings["descriptions"], dataset)
    return Recipe(dataset=dataset, **parts)


def _read(settings: Mapping[str, Any]) -> PhotoDataset:
    arguments = dict(settings)
    kind = str(arguments.pop("type", ""))
    if kind in OWN_DATA:
        check_keys(OWN_DATA[kind], f"dataset of type {kind!r}", arguments, "dataset")
        return OWN_DATA[kind](**arguments)
    if kind not in CATALOGUE:
        known = [*CATALOGUE, *OWN_DATA]
        raise ConfigError(f"dataset: there is no type {kind!r}{nearest(kind, known)} Known: {', '.join(known)}")
    check_keys(read_dataset, f"dataset of type {kind!r}", {"name": kind, **arguments}, "dataset")
    return read_dataset(kind, **arguments)


def _rows(wanted: Sequence[str], recipe: Recipe) -> tuple[list[str], list[str]]:
    """The rows, and those of them that are ranked."""
    has_ranker = recipe.ranker is not None
    if "all" in wanted:
        given = {DESCRIPTIONS: recipe.descriptions, VISION: recipe.vision_encoder}
        every = [row for row in SHORTLISTERS if given.get(row, True) is not None]
        return every, every if has_ranker else []
    rows, ranked = [], []
    for name in wanted:
        row = name.removesuffix(RANKED)
        if row not in SHORTLISTERS:
            raise ConfigError(
                f"there is no row {name!r}{nearest(row, list(SHORTLISTERS))} Known: {', '.join(SHORTLISTERS)}"
            )
        rows.append(row)
        if row != name:
            ranked.append(row)
    if ranked and not has_ranker:
        raise ConfigError(f"row {ranked[0] + RANKED!r} needs a `ranker` in the config")
    return list(dict.fromkeys(rows)), list(dict.fromkeys(ranked))


def run(args: argparse.Namespace) -> Table | NamesTable:
    """Make or read the records, write table, summary and figures; the table."""
    config = read_config(args.config, args.cfg_options)
    out = args.out or Path("work_dirs") / "classify" / args.config.stem
    if args.top < 1:
        raise ConfigError(f"--top must be at least 1, got {args.top}")
    if args.top > 1:
        config["num_candidates"] = max(10, int(config.get("num_candidates") or 0))
    if args.budget is not None:
        _limit_cost(config, args)
    recipe = recipe_of(config, out)
    if args.names:
        names_table, told = classify_names(args, config, recipe, out, _plain_text(config.get("ranker"), recipe.ranker))
        print(f"{told}\n\nwritten to {out}: table.txt, summary.json, records/")
        return names_table
    rows, ranked = _rows([row for row in args.rows if row not in (UNAIDED, RELEASED)], recipe)
    is_unaided = UNAIDED in args.rows
    if (args.offered or is_unaided) and recipe.ranker is None:
        raise ConfigError(f"{'--offered' if args.offered else 'row ' + repr(UNAIDED)} needs a `ranker` in the config")
    encoders = [one for one in (recipe.encoder, recipe.vision_encoder) if one is not None]
    asked = recipe.ranker if ranked or args.offered or is_unaided else None
    missing = [line for encoder in encoders for line in encoder.missing_assets()]
    if asked is not None:
        missing += asked.missing_assets()
    if missing:
        raise MissingAssetError("; ".join(missing))
    few_shot = FewShotRun(
        recipe,
        out,
        cache_dir=default_cache_dir().parent / "photos",
        draws=args.draws,
        limit=args.limit,
        tune=args.tune,
    )
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for encoder in encoders:
        encoder.load(device)
    if asked is not None:
        asked.load(device)
    few_shot.claim(
        {
            "encoder": recipe.encoder.fingerprint,
            "vision_encoder": None if recipe.vision_encoder is None else recipe.vision_encoder.fingerprint,
            "cropper": repr(recipe.cropper),
            "ranker": _plain_text(config.get("ranker"), recipe.ranker),
            "ranker_cropper": repr(recipe.ranker_cropper),
            "fusion": repr(recipe.fusion),
            "num_candidates": recipe.num_candidates,
            "descriptions": recipe.descriptions,
            "draws": args.draws,
            "limit": args.limit,
            "tuned_on_val": args.tune,
        }
    )
    shots = [WHOLE_TRAIN] if args.memory == WHOLE_TRAIN else [str(number) for number in args.shots]
    if isinstance(recipe.ranker, ServedRanker) and recipe.ranker.meter is not None:
        further = [*([UNAIDED] if is_unaided else []), *(f"offered-{count}" for count in args.offered or ())]
        if questions := few_shot.questions(ranked, shots, args.seeds, further):
            print(recipe.ranker.estimate(questions), file=sys.stderr)
    places = few_shot.places(rows, ranked, shots, args.seeds)
    table = Table.from_places(places, args.top)
    if is_unaided:
        correct = few_shot.unaided().reordered < args.top
        table = Table({**table.correct, UNAIDED: {number: [correct] for number in shots}}, args.top)
    lists = few_shot.released(shots, args.seeds) if RELEASED in args.rows else {}
    if lists:
        released = {number: [one < args.top for one in seeds] for number, seeds in lists.items()}
        table = Table({**table.correct, RELEASED: released}, args.top)
    said = [table.verdict(number) for number in shots]
    anywhere = {number: float(np.mean([share_anywhere(one) for one in seeds])) for number, seeds in lists.items()}
    if lists:
        shares = ", ".join(f"{100 * share:.1f}" for share in anywhere.values())
        said.append(f"{RELEASED}: truth anywhere in the list of {DEPTH} photos, its evaluator's top-k: {shares} %")
    text = "\n".join([table.text(), "", *said])
    (out / "table.txt").write_text(text + "\n", encoding="utf-8")
    summary = table.summary() | ({"released_anywhere": anywhere} if lists else {})
    name = recipe.dataset.name
    title = f"{name}, whole train part" if shots[-1] == WHOLE_TRAIN else f"{name}, {shots[-1]} exemplars a class"
    if places:
        draw_top_k({row: by[shots[-1]][0].retrieval for row, by in places.items()}, out / "top_k", title)
    if args.offered:
        offered = few_shot.offered(args.offered)
        curve = {count: float((one.reordered < 1).mean()) for count, one in offered.items()}
        summary["offered"] = {str(count): share for count, share in curve.items()}
        draw_offered({"ranker": curve}, out / "offered", name)
    if asked is not None:
        summary["ranker"] = asked.report()
    (out / "summary.json").write_text(json.dumps(summary, indent=2, default=str) + "\n", encoding="utf-8")
    figures = [*(["top_k.png"] if places else []), *(["offered.png"] if args.offered else [])]
    written = ", ".join(["table.txt", "summary.json", *figures, "records/"])
    print(
        f"{name}: {recipe.dataset.num_classes} classes, {len(few_shot.test)} test photos. {TEXT} uses no exemplars.\n"
        f"{RANKED}: fused with the ranker (ours); {REORDERED}: the ranker's order alone (the paper's)\n\n"
        f"{text}\n\nwritten to {out}: {written}"
    )
    return table


def _limit_cost(config: dict[str, Any], args: argparse.Namespace) -> None:
    """--budget, in place of the config's."""
    ranker: Mapping[str, Any] = config.get("ranker") or {}
    if not asks_a_model(ranker) or "base_url" not in ranker:
        raise ConfigError(f"--budget {args.budget}: {args.config} has no ranker that asks a server")
    config["ranker"] = {**ranker, "server": {**(ranker.get("server") or {}), "budget": args.budget}}


def _plain_text(settings: Any, ranker: Any) -> str | None:
    """A ranker's settings as text, without those that shape no answer: where answers are kept, prices and patience.

    An adapter counts by its content: it may be taught anew in the same folder.
    """
    if settings is None:
        return None
    shaping = {key: value for key, value in settings.items() if key not in SHAPING_NOTHING}
    if revision := (settings.get("server") or {}).get("revision"):
        shaping["revision"] = revision
    adapter = getattr(ranker, "adapter", None)
    if adapter is not None and not adapter.missing():
        shaping["adapter"] = adapter.identity()
    return json.dumps(shaping, sort_keys=True, default=str)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    run(parse_args(argv))
    return 0
