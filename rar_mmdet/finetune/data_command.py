"""Data that teaches a ranker to rank, from the train part of a data set of whole photos.

    rar-mmdet finetune data configs/classification/fgvc_aircraft.py --out data/ranking
    rar-mmdet finetune data configs/classification/own_photos.py --mode ours --ask letter --formats messages

The config names a data set and an encoder, as for `rar-mmdet classify`. OUT gets records.jsonl (photo, names, truth,
target, similarities: no wording, so any way to ask can be made of it), a file for each format, summary.json, and
examples.html: fifty examples to look at before anything is trained. Look at the places of the right name: a model that
copies the order of the question must not win.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rar_mmdet.classification.command import recipe_of
from rar_mmdet.classification.dataset import Example, PhotoDataset
from rar_mmdet.classification.draws import draw_seeded
from rar_mmdet.classification.vectors import PhotoVectors, encode_class_texts
from rar_mmdet.components import build_component, read_config
from rar_mmdet.drawing import crop_address
from rar_mmdet.errors import ConfigError, MissingAssetError, RarError
from rar_mmdet.files.pages import render_page
from rar_mmdet.finetune.examples import MODES, NONE_OF_THESE, RankingExample, make_examples
from rar_mmdet.finetune.exports import EXPORTS, NONE_NAME, ExportWriter, turns_of
from rar_mmdet.memory.cache import default_cache_dir

__all__ = ["main"]

TEMPLATE = Path(__file__).with_name("examples.html.jinja")
SHOWN = 50  # examples on the page
ASKS = {"generate": "Generate", "letter": "Letter", "likelihood": "Likelihood", "yesno": "YesNo"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config of `rar-mmdet classify`: a data set and an encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data")
    parser.add_argument("--mode", choices=MODES, default="ours", help="how questions are made (default: ours)")
    parser.add_argument(
        "--ask", choices=list(ASKS), default="generate", help="wording of the exports (default: generate)"
    )
    parser.add_argument("--prompt", help="name of the prompt (default: the usual one of the way to ask)")
    parser.add_argument("--formats", nargs="*", default=["llava"], choices=list(EXPORTS), help="default: llava")
    parser.add_argument("--shots", type=int, help="only so many photos of each class, a seeded draw")
    parser.add_argument("--seed", type=int, default=0, help="of draws, halves, names and orders (default: 0)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: a GPU if there is one)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make the data; what summary.json holds.

    Raises:
        RarError: something is missing or wrong.
    """
    config = {**read_config(args.config, args.cfg_options), "ranker": None}
    recipe = recipe_of(config, args.out)
    ask = build_component({"type": ASKS[args.ask], "prompt": args.prompt}, "ask")
    if args.mode == "ours" and args.ask == "generate" and ask.wording.has_letters:
        raise ConfigError("--ask generate takes a prompt that lists names, not letters")
    dataset = recipe.dataset
    photos = dataset.train if args.shots is None else draw_seeded(dataset, args.shots, args.seed).examples
    photos = tuple(dict.fromkeys(photos))
    if not photos:
        raise ConfigError(f"{dataset.name} has no train part to make questions of")
    missing = recipe.encoder.missing_assets()
    if missing:
        raise MissingAssetError("; ".join(missing))
    recipe.encoder.load(torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    vectors = PhotoVectors(recipe.encoder, recipe.cropper, default_cache_dir().parent / "photos")(photos)
    text = encode_class_texts(recipe.encoder, dataset)
    labels = torch.tensor([example.label for example in photos])
    examples = make_examples(args.mode, vectors, labels, text, seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    summary, shown = _write(args, examples, photos, dataset, ask)
    summary |= {"mode": args.mode, "ask": args.ask, "seed": args.seed, "data": dataset.describe()}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _write_page(args.out / "examples.html", shown, photos, dataset, summary)
    _tell(args, summary)
    return summary


def _write(
    args: argparse.Namespace, examples: Any, photos: Sequence[Example], dataset: PhotoDataset, ask: Any
) -> tuple[dict[str, Any], list[RankingExample]]:
    """Records and exports, streaming; counts, and examples drawn for the page (reservoir sampling)."""
    places: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    seen: set[int] = set()
    number = turns = repeated = none = 0
    shown: list[RankingExample] = []
    rng = np.random.default_rng(args.seed)
    part = args.out / "records.jsonl.part"
    with ExitStack() as stack:
        records = stack.enter_context(open(part, "w", encoding="utf-8"))
        exports = [stack.enter_context(ExportWriter(name, args.out)) for name in dict.fromkeys(args.formats)]
        for number, example in enumerate(tqdm(examples, desc="examples", unit="", disable=None), 1):
            photo = photos[example.photo]
            records.write(json.dumps(_record(example, photo, dataset), ensure_ascii=False) + "\n")
            for turn in turns_of(example, number, photo.path, dataset.display_names, ask):
                turns += 1
                for export in exports:
                    export.add(turn)
            places[example.truth] += 1
            sizes[len(example.labels)] += 1
            none += example.labels[example.truth] == NONE_OF_THESE
            key = hash((example.photo, frozenset(example.labels)))
            repeated += key in seen
            seen.add(key)
            if len(shown) < SHOWN:
                shown.append(example)
            elif (place := int(rng.integers(number))) < SHOWN:
                shown[place] = example
    os.replace(part, args.out / "records.jsonl")
    return {
        "examples": number,
        "entries": turns,
        "photos": len(photos),
        "place_of_the_right_name": dict(sorted(places.items())),
        "names_in_a_question": dict(sorted(sizes.items())),
        "none_of_these": none,
        "same_photo_and_names_again": repeated,
        "copying_the_order_is_right": places[0] / number if number else 0.0,
        "chance": sum(count / size for size, count in sizes.items()) / number if number else 0.0,
    }, shown


def _record(example: RankingExample, photo: Example, dataset: PhotoDataset) -> dict[str, Any]:
    return {
        "photo": photo.path,
        "names": _names(example, dataset),
        "labels": example.labels,
        "truth": example.truth,
        "target": example.target,
        "similarities": [round(value, 5) for value in example.similarities],
    }


def _names(example: RankingExample, dataset: PhotoDataset) -> list[str]:
    return [NONE_NAME if label == NONE_OF_THESE else dataset.display_names[label] for label in example.labels]


def _write_page(
    file: Path,
    shown: Sequence[RankingExample],
    photos: Sequence[Example],
    dataset: PhotoDataset,
    summary: dict[str, Any],
) -> None:
    cards = []
    for example in shown:
        pixels = photos[example.photo].read()
        height, width = pixels.shape[:2]
        cards.append(
            {
                "picture": crop_address(pixels, (0, 0, width, height), side=160, context=0.0),
                "names": list(zip(_names(example, dataset), example.similarities, strict=True)),
                "truth": example.truth,
                "answer": [_names(example, dataset)[place] for place in example.target],
            }
        )
    page = render_page(TEMPLATE, name=dataset.name, cards=cards, summary=summary)
    file.write_text(page, encoding="utf-8")


def _tell(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    total = summary["examples"]
    print(f"{total} examples of {summary['photos']} photos ({summary['entries']} entries), mode {args.mode}")
    print("place of the right name:")
    most = max(summary["place_of_the_right_name"].values(), default=1)
    for place, count in summary["place_of_the_right_name"].items():
        print(f"  {place + 1:>3} {count:>8}  {'#' * round(40 * count / most)}")
    copied, chance = 100 * summary["copying_the_order_is_right"], 100 * summary["chance"]
    print(f"a model that copies the order of the question is right in {copied:.1f} % (chance: {chance:.1f} %)")
    print(f"\"{NONE_NAME}\" is right in {summary['none_of_these']}; {summary['same_photo_and_names_again']} repeat a "
          "photo with the same names")  # fmt: skip
    written = [EXPORTS[name][0] for name in dict.fromkeys(args.formats)]
    print(f"written to {args.out}: {', '.join(['records.jsonl', *written, 'summary.json', 'examples.html'])}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    try:
        run(parse_args(argv))
    except RarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
