"""The command `rar-mmdet encoders`: presets, and whether their files are on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rar_mmdet.encoders.presets import Preset, find_preset, read_presets

__all__ = ["main"]

COLUMNS = ("name", "dim", "size", "tokens", "licence", "here")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="rar-mmdet encoders",
        description="Published encoders by name: length of their vectors, side of crops in pixels, tokens of a text, "
        "licence of the weights, and whether they are on this machine. Nothing is downloaded. '-': not known.",
        epilog='In a config: encoder=dict(type="Encoder", preset=NAME)',
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="these presets alone, with all that is missing")
    parser.add_argument("--json", action="store_true", help="all that is known of each, as one JSON list")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table.

    Raises:
        ConfigError: there is no preset of a name that was given.
    """
    args = parse_args(argv)
    presets = [find_preset(name) for name in args.names] or list(read_presets())
    missing = {preset.name: preset.build().missing_assets() for preset in presets}
    if args.json:
        rows = [{**asdict(p), "here": not missing[p.name], "missing": missing[p.name]} for p in presets]
        print(json.dumps(rows, indent=2))
        return 0
    print(_table(presets, missing))
    absent = [preset for preset in presets if missing[preset.name]]
    if args.names:
        for preset in absent:
            print(f"\n{preset.name}, missing:")
            print("\n".join(missing[preset.name]))
    elif absent:
        print(f"\n{len(absent)} of {len(presets)} are not here. `rar-mmdet encoders NAME` says what to type for one.")
    return 0


def _table(presets: Sequence[Preset], missing: dict[str, list[str]]) -> str:
    """One line a preset, families apart; the last column is empty where all files are here, else what to type."""
    rows: list[tuple[str, ...]] = [(*COLUMNS, "to get it")]
    for preset in presets:
        facts = (preset.dim, preset.image_size, preset.text_length, preset.licence)
        here = "no" if missing[preset.name] else "yes"
        rows.append((preset.name, *map(_shown, facts), here, "" if here == "yes" else _to_type(missing[preset.name])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def _shown(fact: Any) -> str:
    return "-" if fact is None else str(fact)


def _to_type(missing: Sequence[str]) -> str:
    """The commands alone, out of the sentences that say what is missing."""
    commands = []
    for text in missing:
        _, found, rest = text.partition("hf download ")
        if found:
            command = f"hf download {rest.splitlines()[0].split('   (')[0].split('`')[0].strip()}"
            if command not in commands:
                commands.append(command)
    return " && ".join(commands) or "see `rar-mmdet encoders NAME`"
