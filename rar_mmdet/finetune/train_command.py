"""Teach a ranker to rank: LoRA on a vision-language model, by transformers, accelerate and PEFT.

    rar-mmdet finetune data  configs/classification/fgvc_aircraft.py --out data/ranking/aircraft
    rar-mmdet finetune train configs/finetune/aircraft_llava.py
    accelerate launch -m rar_mmdet.cli finetune train configs/finetune/aircraft_llava.py        # several GPUs

The config names the ranker as it will be asked, the rows, and the schedule (docs/finetune.md). The loss is that of the
answers' tokens alone. A run that was killed goes on from its last state when the same command is given again. OUT gets
adapter/ (for `adapter=` of a TransformersRanker, and for servers), curves.png, log.jsonl, summary.json. At the end it
says two things that the loss does not: how often the ranker is right when photos are blank, and what it chooses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rar_mmdet.classification.recording import claim_folder
from rar_mmdet.components import read_config
from rar_mmdet.files.checkpoints import file_sha256
from rar_mmdet.finetune.settings import recipe_of_training
from rar_mmdet.finetune.training import train_ranker
from rar_mmdet.rankers.adapters import weights_digest

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="for instance configs/finetune/aircraft_llava.py")
    parser.add_argument("--out", type=Path, help="folder of the run (default: work_dirs/finetune/CONFIG)")
    parser.add_argument("--device", help="cpu, or cuda (default: a GPU if there is one)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train or go on; what summary.json holds.

    Raises:
        RarError: something is missing or wrong.
    """
    config = read_config(args.config, args.cfg_options)
    out = args.out or Path("work_dirs") / "finetune" / args.config.stem
    recipe = recipe_of_training(config)
    files = [file for file in (recipe.records, recipe.validation) if file is not None and file.is_file()]
    claim_folder(
        out,
        {
            "config": json.loads(json.dumps(config, default=str)),
            "rows": [file_sha256(file) for file in files],
            "base": weights_digest(recipe.ranker.checkpoint),
        },
    )
    summary = train_ranker(recipe, out, args.device, tqdm.write)
    if summary:
        print(f"written to {out}: adapter/, curves.png, log.jsonl, summary.json")
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    run(parse_args(argv))
    return 0
