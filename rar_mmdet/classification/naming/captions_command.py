"""Encode captions once, for the finder `captions`.

    rar-mmdet names captions configs/classification/cub200.py captions.txt --out captions.safetensors

One caption a line. The vectors are of the config's encoder, and of no use to another.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from rar_mmdet.classification.naming.finders import write_captions
from rar_mmdet.components import build_component, read_config
from rar_mmdet.errors import MissingAssetError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="as for `rar-mmdet classify`; its encoder is used")
    parser.add_argument("captions", type=Path, help="text file, one caption a line")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.safetensors)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    encoder = build_component(read_config(args.config, [])["encoder"], "encoder")
    if missing := encoder.missing_assets():
        raise MissingAssetError("; ".join(missing))
    encoder.load(torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    count = write_captions(args.captions, encoder, args.out)
    print(f"{count} captions encoded, written to {args.out}")
    return 0
