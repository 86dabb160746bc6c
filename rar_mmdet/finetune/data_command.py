"""Data that teaches a ranker to rank, from the train part of a data set of whole photos, or from annotated boxes.

    rar-mmdet finetune data configs/classification/fgvc_aircraft.py --out data/ranking
    rar-mmdet finetune data configs/classification/own_photos.py --mode ours --ask letter --formats messages
    rar-mmdet finetune data configs/clip_lvis.py --annotations data/lvis/annotations/lvis_v1_train.json \\
        --images data/coco --shots 20 --out data/ranking/lvis

The config names a data set and an encoder, as for `rar-mmdet classify`; with --annotations it is one with a recogniser,
whose encoder, crops and vocabulary are used. Mode `names` makes one question of each photo, for an answer that is the
name alone: it makes a classifier of a model. OUT gets records.jsonl (photo, names, truth,
target, similarities: no wording, so any way to ask can be made of it), a file for each format, summary.json, and
examples.html: fifty examples to look at before anything is trained. Look at the places of the right name: a model that
copies the order of the question must not win.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rar_mmdet.components import build_component
from rar_mmdet.drawing import crop_address
from rar_mmdet.errors import ConfigError
from rar_mmdet.files.images import read_image
from rar_mmdet.files.pages import render_page
from rar_mmdet.finetune.examples import MODES, NONE_OF_THESE, RankingExample, make_examples
from rar_mmdet.finetune.exports import EXPORTS, NONE_NAME, ExportWriter, turns_of
from rar_mmdet.finetune.sources import Source, annotated_boxes, whole_photos

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
    parser.add_argument("--shots", type=int, help="only so many photos or boxes of each class, a seeded draw")
    parser.add_argument("--annotations", type=Path, help="boxes of this COCO, LVIS or V3Det file, in place of photos")
    parser.add_argument("--images", type=Path, help="folder that the file names of --annotations start from")
    parser.add_argument("--seed", type=int, default=0, help="of draws, halves, names and orders (default: 0)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: a GPU if there is one)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make the data; what summary.json holds.

    Raises:
        RarError: something is missing or wrong.
    """
    ask = build_component({"type": ASKS[args.ask], "prompt": args.prompt}, "ask")
    if args.mode == "ours" and args.ask == "generate" and ask.wording.has_letters:
        raise ConfigError("--ask generate takes a prompt that lists names, not letters")
    source = _source(args)
    examples = make_examples(
        args.mode, source.vectors, source.labels, source.text, seed=args.seed, groups=source.groups
    )
    args.out.mkdir(parents=True, exist_ok=True)
    summary, shown = _write(args, examples, source, ask)
    summary |= {"mode": args.mode, "ask": args.ask, "seed": args.seed, "data": source.described}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _write_page(args.out / "examples.html", shown, source, summary)
    _tell(args, summary)
    return summary


def _source(args: argparse.Namespace) -> Source:
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.annotations is None:
        return whole_photos(args.config, args.cfg_options, args.out, device, args.shots, args.seed)
    if args.images is None:
        raise ConfigError("--annotations needs --images, the folder that its file names start from")
    return annotated_boxes(args.config, args.cfg_options, args.annotations, args.images, device, args.shots, args.seed)


def _write(
    args: argparse.Namespace, examples: Any, source: Source, ask: Any
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
            records.write(json.dumps(_record(example, source), ensure_ascii=False) + "\n")
            box = source.boxes_xyxy[example.photo]
            for turn in turns_of(example, number, source.paths[example.photo], source.names, ask, box):
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
        "photos": len(set(source.paths)),
        "place_of_the_right_name": dict(sorted(places.items())),
        "names_in_a_question": dict(sorted(sizes.items())),
        "none_of_these": none,
        "same_photo_and_names_again": repeated,
        "copying_the_order_is_right": places[0] / number if number else 0.0,
        "chance": sum(count / size for size, count in sizes.items()) / number if number else 0.0,
    }, shown


def _record(example: RankingExample, source: Source) -> dict[str, Any]:
    box = source.boxes_xyxy[example.photo]
    return {
        "photo": source.paths[example.photo],
        **({} if box is None else {"box_xyxy": box}),
        "names": _names(example, source),
        "labels": example.labels,
        "truth": example.truth,
        "target": example.target,
        "similarities": [round(value, 5) for value in example.similarities],
    }


def _names(example: RankingExample, source: Source) -> list[str]:
    return [NONE_NAME if label == NONE_OF_THESE else source.names[label] for label in example.labels]


def _write_page(
    file: Path,
    shown: Sequence[RankingExample],
    source: Source,
    summary: dict[str, Any],
) -> None:
    cards = []
    for example in shown:
        pixels = read_image(source.paths[example.photo])
        height, width = pixels.shape[:2]
        box = source.boxes_xyxy[example.photo] or (0.0, 0.0, float(width), float(height))
        cards.append(
            {
                "picture": crop_address(pixels, box, side=160, context=0.0),
                "names": list(zip(_names(example, source), example.similarities, strict=True)),
                "truth": example.truth,
                "answer": [_names(example, source)[place] for place in example.target],
            }
        )
    page = render_page(TEMPLATE, name=source.name, cards=cards, summary=summary)
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
    run(parse_args(argv))
    return 0
