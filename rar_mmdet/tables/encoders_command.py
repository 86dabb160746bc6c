"""Encoders side by side on the same boxes: AP, AP by frequency and size, top-1 and recall@5 of retrieval alone.

    rar-mmdet table encoders configs/clip_lvis.py --presets openai-clip-b16 siglip2-so400m-384 fg-clip2-base-regions
    rar-mmdet table encoders configs/demo/clip_demo.py --presets configs/_base_/retrievers/clip_demo.py

PRESET is a name of `rar-mmdet encoders`, or a config file with `encoder` and, if it has one of its own, `memory`
(templates, temperature), such as those of configs/_base_/retrievers/. All else is CONFIG's: boxes, crops, memory,
emission and metrics. Each encoder is a run of its own in WORK_DIRS/tables/encoders/CONFIG/PRESET, of a config PRESET.py
beside it; one that is there is not made again. One that cannot run here says what it lacks, and how to get that.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rar_mmdet.calibration.report import put_at, write_config
from rar_mmdet.components import find_recognizers, read_config
from rar_mmdet.encoders.presets import find_preset
from rar_mmdet.errors import ConfigError
from rar_mmdet.tables.command import ENCODERS, add_running_options, check_running_options, finish
from rar_mmdet.tables.definitions import Definition, read_definitions
from rar_mmdet.tables.jobs import TestJob
from rar_mmdet.tables.kinds import box_cells
from rar_mmdet.tables.rows import Options, Part, Plan, Row

__all__ = ["main", "plan_encoders"]

PUBLISHED_ON = "lvis_v1_val.json"  # the annotations that the figures of others are of


@dataclass(frozen=True)
class _Choice:
    """A row: its name, and the parts of the recogniser that it replaces."""

    name: str
    parts: Mapping[str, Any]


def _choice(text: str) -> _Choice:
    """Of a preset's name or a config file.

    Raises:
        ConfigError: there is no such preset, or no encoder in the file.
    """
    if not text.endswith(".py"):
        return _Choice(find_preset(text).name, {"encoder": {"type": "Encoder", "preset": text}})
    config = read_config(text)
    if not isinstance(config.get("encoder"), Mapping):
        raise ConfigError(f"{text} has no dict `encoder`; give a file such as configs/_base_/retrievers/clip_vitb16.py")
    return _Choice(Path(text).stem, {key: config[key] for key in ("encoder", "memory") if key in config})


def plan_encoders(
    config: Path, presets: Sequence[str], options: Options, *, keep_ranker: bool = False
) -> tuple[Definition, Plan]:
    """The table and its rows; writes the config of each.

    Args:
        config: with one recogniser.
        presets: names, or config files.
        options: of all tables.
        keep_ranker: whether the config's ranker stays; by default retrieval alone is compared.

    Raises:
        ConfigError: a preset is unknown or named twice, or the config has not one recogniser.
    """
    choices = [_choice(text) for text in presets]
    names = [choice.name for choice in choices]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"--presets names {twice!r} twice; rename a config file to compare two of one name")
    content = read_config(config)
    found = list(find_recognizers(content.get("model", {})))
    if len(found) != 1:
        raise ConfigError(f"expected one `recognizer` in the model of {config}, found {len(found)}")
    where, _ = found[0]
    definition = read_definitions()[ENCODERS]
    is_published = any(str(one.get("ann_file", "")).endswith(PUBLISHED_ON) for one in _evaluators(content))
    columns = definition.settings["columns"]
    rows = []
    for choice in choices:
        folder = options.work_dirs / "tables" / ENCODERS / config.stem / choice.name
        file = folder.with_name(f"{choice.name}.py")
        changes: dict[str, Any] = {key: {**value, "_delete_": True} for key, value in choice.parts.items()}
        changes["cropper"] = {"size": None}  # each encoder's own
        if not keep_ranker:
            changes |= {"ranker": None, "ranker_cropper": None}
        file.parent.mkdir(parents=True, exist_ok=True)
        comment = f"{config.name} with the encoder {choice.name}, by `rar-mmdet table encoders`"
        write_config(put_at(where, changes), comment, config, file)
        job = TestJob(file, folder, False, options.num_images, options.gpus)
        rows.append(Row(choice.name, (Part(job, partial(box_cells, columns)),)))
    published = tuple(one for one in definition.published if is_published and one.row in names)
    title = f"{definition.title}: {config.name}"
    return replace(definition, title=title, published=published), Plan(tuple(columns), tuple(rows))


def _evaluators(config: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    evaluators = config.get("test_evaluator") or []
    return evaluators if isinstance(evaluators, list) else [evaluators]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config with boxes, such as configs/clip_lvis.py")
    parser.add_argument("--presets", nargs="+", required=True, metavar="PRESET", help="names, or config files")
    parser.add_argument("--keep-ranker", action="store_true", help="rank as CONFIG does (default: retrieval alone)")
    add_running_options(parser)
    args = parser.parse_args(argv)
    check_running_options(parser, args)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    args = parse_args(argv)
    options = Options(work_dirs=args.work_dirs, num_images=args.num_images, gpus=args.gpus)
    definition, planned = plan_encoders(args.config, args.presets, options, keep_ranker=args.keep_ranker)
    return finish(args, definition, planned, args.work_dirs / "tables" / f"{ENCODERS}_{args.config.stem}")
