"""One page about one or several runs: what they scored, how sure they were, where ranking helped, what went wrong.

    rar-mmdet report work_dirs/demo/seed0/rar --out report.html
    rar-mmdet report work_dirs/retrieval work_dirs/rar --out report.html     # side by side, with paired intervals

RUN is the folder of a run of tools/test.py (regions.jsonl, summary.json), or a file of records such as those of
`rar-mmdet classify`. No model runs. The page is one file without scripts from elsewhere; its figures also lie beside it
as PNG, SVG and CSV, in a folder of its name.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rar_mmdet.errors import RarError, RecordFileError
from rar_mmdet.report.figures import figures_of, write_figure
from rar_mmdet.report.page import render
from rar_mmdet.report.runs import Run, read_run

__all__ = ["main", "write_report"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or a file of records")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.add_argument("--title", default="Recognition report", help="of the page")
    parser.add_argument("--panels", type=int, default=9, help="regions of each kind to show (default: 9)")
    parser.add_argument("--seed", type=int, default=0, help="of the regions shown at random (default: 0)")
    parser.add_argument("--csv", action="store_true", help="also one line for each region, as CSV beside the figures")
    args = parser.parse_args(argv)
    if args.panels < 0:
        parser.error(f"--panels {args.panels}: expected 0 or more")
    return args


def write_report(
    runs: Sequence[Run],
    out: Path,
    *,
    title: str = "Recognition report",
    panels: int = 9,
    seed: int = 0,
    with_csv: bool = False,
) -> Path:
    """Write the page and, in a folder of its name, its figures; the path of the page.

    Args:
        runs: one or more, with different names.
        out: the page.
        title: of the page.
        panels: regions of each kind to show.
        seed: of those at random.
        with_csv: also one line for each region.

    Raises:
        RecordFileError: the page cannot be written.
    """
    folder = out.with_suffix("")
    folder = folder if folder != out else out.with_name(f"{out.name}_files")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figures = [(figure, write_figure(figure, folder)) for figure in figures_of(runs)]
        page = render(runs, figures, title=title, panels=panels, seed=seed, beside=out.parent)
        part = out.with_name(f"{out.name}.part")
        part.write_text(page, encoding="utf-8")
        os.replace(part, out)
        if with_csv:
            folder.mkdir(exist_ok=True)
            for number, run in enumerate(runs, 1):
                _write_regions(run, folder / f"regions_{number}.csv")
    except OSError as error:
        raise RecordFileError(f"--out {out} cannot be written: {error.strerror}") from error
    return out


def _write_regions(run: Run, file: Path) -> None:
    head = ("image", "region", "truth", "named", "retrieval_right", "ranker_right", "fused_right", "fused_confidence")
    with open(file, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(head)
        for row, (image, region) in enumerate(run.keys):
            truth, named = int(run.truth[row]), int(run.named[row])
            right = [int(stage.correct[row]) for stage in (run.retrieval, run.ranker, run.fused)]
            known = [run.names.get(truth, ""), run.names.get(named, "")]
            table.writerow([image, region, *known, *right, f"{run.fused.confidence[row]:.6g}"])


def _named(paths: Sequence[Path]) -> list[Run]:
    """The runs, those of one name told apart by their folders."""
    resolved = [path.resolve() for path in paths]
    depth = 1
    while depth < 4 and max(Counter("/".join(p.parts[-depth:]) for p in resolved).values()) > 1:
        depth += 1
    return [read_run(path, "/".join(p.parts[-depth:])) for path, p in zip(paths, resolved, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    args = parse_args(argv)
    try:
        runs = _named(args.runs)
        page = write_report(runs, args.out, title=args.title, panels=args.panels, seed=args.seed, with_csv=args.csv)
    except RarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report    {page}  ({page.stat().st_size / 1e6:.1f} MB, opens in any browser)")
    return 0
