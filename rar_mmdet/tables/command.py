"""A table of the paper: runs the rows that are missing, reads those that are there, prints ours beside the paper's.

    rar-mmdet table lvis --dry-run                  # what would run, what is missing and how to get it
    rar-mmdet table lvis                            # Table 3; `make lvis-table` is the same
    rar-mmdet table lvis --rows CLIP --num-images 50

Figures of others stand as they were printed, with their source and what is known of them; none is ours. A row is a run
of tools/test.py or another command, in a process of its own, in the folder that the command would take by itself: a run
made by hand is found, and one that is there is not made again. A row that cannot run here says what it lacks, and how
to get that. The table also goes to WORK_DIRS/tables/, as text, Markdown, CSV and JSON (docs/tables.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rar_mmdet.classification.experiment import WHOLE_TRAIN
from rar_mmdet.components import nearest
from rar_mmdet.errors import ConfigError, MissingAssetError
from rar_mmdet.tables.definitions import Definition, read_definitions
from rar_mmdet.tables.jobs import Launch, Look, launch, look, run_jobs
from rar_mmdet.tables.kinds import plan
from rar_mmdet.tables.rows import Options, Plan, default_configs, sheet_of
from rar_mmdet.tables.sheet import FORMATS, Sheet

__all__ = [
    "add_running_options",
    "check_running_options",
    "finish",
    "main",
    "make_table",
    "show",
    "tell",
    "write_sheet",
]

ENCODERS = "encoders"  # a command of its own
EXIT_FAILED = 1  # a row was started and failed


def add_running_options(parser: argparse.ArgumentParser) -> None:
    """Options of every table."""
    parser.add_argument(
        "--work-dirs", type=Path, default=Path("work_dirs"), help="where runs are and go (default: work_dirs)"
    )
    parser.add_argument(
        "--dry-run", "--list", action="store_true", help="run nothing: say how each row stands, and what it would run"
    )
    parser.add_argument("--on-cpu", action="store_true", help="run rows that want a GPU without one too")
    parser.add_argument("--gpus", type=int, default=1, help="share the photos out among so many GPUs (default: 1)")
    parser.add_argument("--num-images", type=int, help="only the first so many images; scores are over these alone")
    parser.add_argument("--format", choices=list(FORMATS), default="text", help="of what is printed (default: text)")


def check_running_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Counts are at least 1; ends the process where argparse does."""
    for name in ("gpus", "num_images"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    names = {name: one for name, one in read_definitions().items() if name != ENCODERS}
    listed = "\n".join(f"  {name:<13} {one.paper}. {one.title}" for name, one in names.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\ntables:\n{listed}\n  {ENCODERS:<13} `rar-mmdet table {ENCODERS} --help`",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", help="of those below")
    parser.add_argument("--rows", nargs="+", default=[], metavar="TEXT", help="rows alone whose names hold the text")
    parser.add_argument(
        "--configs", type=Path, default=default_configs(), help="folder of the configs (default: those of the project)"
    )
    parser.add_argument(
        "--add",
        nargs="+",
        default=[],
        type=_given,
        metavar="NAME=PATH",
        help="tables of boxes: a row of your own, of a run's folder or a file of `rar-mmdet score ... --json FILE`",
    )
    photos = parser.add_argument_group("tables of whole photos")
    photos.add_argument(
        "--shots",
        nargs="+",
        default=["4"],
        help=f"exemplars a class, or {WHOLE_TRAIN} for the whole train part (default: 4)",
    )
    photos.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of the draws (default: 1 2 3)")
    photos.add_argument("--limit", type=int, help="only so many test photos of a set, a stratified sample")
    photos.add_argument("--wordnet", type=Path, metavar="FOLDER", help="dictionary, for names found by WordNet")
    photos.add_argument(
        "--guesses", type=Path, metavar="FOLDER", help="FineR's guessed names as SET.json, for RAR's row"
    )
    add_running_options(parser)
    args = parser.parse_args(argv)
    if args.table not in names:
        known = ", ".join(names)
        raise ConfigError(
            f"there is no table {args.table!r}{nearest(args.table, list(names))} Known: {known}, encoders"
        )
    check_running_options(parser, args)
    odd = [shots for shots in args.shots if shots != WHOLE_TRAIN and not (shots.isdigit() and int(shots))]
    if odd:
        parser.error(f"--shots must be whole numbers of at least 1, or {WHOLE_TRAIN}; got {odd[0]}")
    return args


def _given(text: str) -> tuple[str, Path]:
    """A row's name, and where its numbers are."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {text!r}")
    return name, Path(path)


def make_table(
    definition: Definition, planned: Plan, *, dry: bool, on_cpu: bool = False, start: Launch = launch
) -> tuple[Sheet, dict[str, Look]]:
    """Run what is missing, unless `dry`; the table, and how its jobs stand.

    Args:
        definition: of the table.
        planned: its rows.
        dry: run nothing.
        on_cpu: run jobs that want a GPU without one too.
        start: runs a command.
    """
    if dry:
        looks = {job.name: look(job, on_cpu=on_cpu) for job in planned.jobs}
    else:
        looks = run_jobs(planned.jobs, on_cpu=on_cpu, start=start, tell=tell)
    return sheet_of(definition, planned, looks), looks


def tell(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def show(planned: Plan, looks: dict[str, Look]) -> None:
    """How each job stands, and what it would run."""
    for job in planned.jobs:
        found = looks[job.name]
        state = "done" if found.is_done else "would run" if found.can_run else "cannot run"
        print(f"{state:<10}  {job.name}  in {job.folder}")
        for problem in found.problems:
            print("".join(f"            {line}\n" for line in problem.splitlines()), end="")
        for command in [] if found.is_done else job.commands():
            print(f"            {command}")
    counts = [sum(states) for states in zip(*((f.is_done, f.can_run) for f in looks.values()), strict=True)] or [0, 0]
    print(f"\n{counts[0]} of {len(looks)} are done, {counts[1]} would run")


def write_sheet(sheet: Sheet, stem: Path) -> str:
    """Write the table in every format; where it is.

    Raises:
        MissingAssetError: the folder cannot be written.
    """
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for render, suffix in FORMATS.values():
            stem.with_name(f"{stem.name}.{suffix}").write_text(render(sheet) + "\n", encoding="utf-8")
    except OSError as error:
        raise MissingAssetError(
            f"{stem.parent} cannot be written: {error.strerror}; give another --work-dirs"
        ) from error
    return f"{stem}.{{{','.join(suffix for _, suffix in FORMATS.values())}}}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    args = parse_args(argv)
    definition = read_definitions()[args.table]
    if args.rows:
        definition = definition.choose(args.rows)
    options = Options(
        configs=args.configs,
        work_dirs=args.work_dirs,
        num_images=args.num_images,
        gpus=args.gpus,
        given=tuple(args.add),
        shots=tuple(args.shots),
        seeds=tuple(args.seeds),
        limit=args.limit,
        wordnet=args.wordnet,
        guesses=args.guesses,
    )
    planned = plan(definition, options)
    return finish(args, definition, planned, args.work_dirs / "tables" / args.table)


def finish(args: argparse.Namespace, definition: Definition, planned: Plan, stem: Path) -> int:
    """Make, print and write a table as the command line asks; the exit status."""
    sheet, looks = make_table(definition, planned, dry=args.dry_run, on_cpu=args.on_cpu)
    if args.dry_run:
        show(planned, looks)
        return 0
    print(FORMATS[args.format][0](sheet))
    tell(f"\nwritten to {write_sheet(sheet, stem)}")
    return EXIT_FAILED if any("ended with status" in text for f in looks.values() for text in f.problems) else 0
