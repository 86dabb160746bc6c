"""One page about one or several runs: what they scored, how sure they were, where ranking helped, what went wrong.

    rar-mmdet report work_dirs/demo/seed0/rar --out report.html
    rar-mmdet report work_dirs/retrieval work_dirs/rar --out report.html     # side by side, with paired intervals

RUN is the folder of a run of tools/test.py (regions.jsonl, summary.json), or a file of records such as those of
`rar-mmdet classify`. No model runs. The page is one file without scripts from elsewhere; its figures also lie beside it
as PNG, SVG and CSV, in a folder of its name.

Runs that differ in the number of candidates alone, or in a fixed crop scale alone, make a figure of it. Errors of boxes
come on the page where `rar-mmdet score RESULTS ANNOTATIONS --protocol lvis --errors --json RUN/scores.json` was run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rar_mmdet.errors import CategoryTreeError, RecordFileError
from rar_mmdet.report import load_in_fiftyone
from rar_mmdet.report.confusions import ClassRow, NameTree, classes_of, confusions, read_name_tree
from rar_mmdet.report.figures import figures_of, write_figure
from rar_mmdet.report.page import render
from rar_mmdet.report.runs import Run, read_run

__all__ = ["folder_of", "main", "write_report"]

FIFTYONE = "load_in_fiftyone.py"
CLASS_COLUMNS = [field.name for field in fields(ClassRow)]
PAIR_COLUMNS = ["truth", "named", "truth_name", "named_name", "count", "row"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or a file of records")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.add_argument("--title", default="Recognition report", help="of the page")
    parser.add_argument("--panels", type=int, default=9, help="regions of each kind to show (default: 9)")
    parser.add_argument("--seed", type=int, default=0, help="of the regions shown at random (default: 0)")
    parser.add_argument(
        "--csv", action="store_true", help="also regions, classes and confusions, as CSV beside the figures"
    )
    parser.add_argument(
        "--tree", type=Path, metavar="FILE", help="roll confusions up: V3Det's category tree, or JSON {child: parent}"
    )
    parser.add_argument(
        "--vocabulary", type=Path, metavar="FILE", help="the names in label order, for --tree (default: the run's)"
    )
    parser.add_argument(
        "--fiftyone", action="store_true", help="also a script beside the figures that loads the runs into FiftyOne"
    )
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
    with_fiftyone: bool = False,
    tree: NameTree | None = None,
) -> Path:
    """Write the page and, in a folder of its name, its figures; the path of the page.

    Args:
        runs: one or more, with different names.
        out: the page.
        title: of the page.
        panels: regions of each kind to show.
        seed: of those at random.
        with_csv: also regions, classes and confusions of each run.
        with_fiftyone: also the script that loads the runs into FiftyOne.
        tree: of the names, to roll confusions up.

    Raises:
        RecordFileError: the page cannot be written.
    """
    folder = folder_of(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figures = [(figure, write_figure(figure, folder)) for figure in figures_of(runs)]
        page = render(runs, figures, title=title, panels=panels, seed=seed, beside=out.parent, tree=tree)
        part = out.with_name(f"{out.name}.part")
        part.write_text(page, encoding="utf-8")
        os.replace(part, out)
        folder.mkdir(exist_ok=True)
        for number, run in enumerate(runs if with_csv else (), 1):
            _write_regions(run, folder / f"regions_{number}.csv")
            _write_table(folder / f"classes_{number}.csv", CLASS_COLUMNS, map(vars, classes_of(run)))
            _write_table(folder / f"confusions_{number}.csv", PAIR_COLUMNS, confusions(run, most=None))
        if with_fiftyone:
            _write_script(runs, folder / FIFTYONE)
    except OSError as error:
        raise RecordFileError(f"--out {out} cannot be written: {error.strerror}") from error
    return out


def folder_of(page: Path) -> Path:
    """Where the figures of a page are."""
    folder = page.with_suffix("")
    return folder if folder != page else page.with_name(f"{page.name}_files")


def _write_table(file: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    with open(file, "w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, columns)
        table.writeheader()
        table.writerows(rows)


def _write_script(runs: Sequence[Run], file: Path) -> None:
    """The script, with these runs in it."""
    empty = "RUNS: dict[str, str] = {}"
    text = Path(load_in_fiftyone.__file__).read_text(encoding="utf-8")
    assert text.count(empty) == 1, "the script has one place for its runs"
    where = {run.name: str(run.file.resolve()) for run in runs}
    file.write_text(text.replace(empty, f"RUNS: dict[str, str] = {json.dumps(where)}"), encoding="utf-8")


def _tree_of(args: argparse.Namespace, run: Run) -> NameTree | None:
    if args.tree is None:
        return None
    vocabulary = args.vocabulary or run.recognizer.get("vocabulary")
    if vocabulary is None or (isinstance(vocabulary, str) and not Path(vocabulary).is_file()):
        raise CategoryTreeError(
            f"--tree needs the names in label order, and those of {run.name} are not known here"
            + (f" ({vocabulary} is not there)" if vocabulary else "")
            + ": give --vocabulary FILE, a text file with one name a line or the annotation file of the run"
        )
    return read_name_tree(args.tree, vocabulary)


def _write_regions(run: Run, file: Path) -> None:
    head = ("image", "region", "truth", "named", "retrieval_right", "ranker_right", "fused_right", "fused_confidence")
    with open(file, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(head)
        truth, named = ([run.names.get(label, "") for label in column.tolist()] for column in (run.truth, run.named))
        right = [stage.correct.astype(int).tolist() for stage in (run.retrieval, run.ranker, run.fused)]
        sure = [f"{value:.6g}" for value in run.fused.confidence.tolist()]
        columns = zip(run.keys, truth, named, *right, sure, strict=True)
        table.writerows([*key, *cells] for key, *cells in columns)


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
    runs = _named(args.runs)
    page = write_report(
        runs,
        args.out,
        title=args.title,
        panels=args.panels,
        seed=args.seed,
        with_csv=args.csv,
        with_fiftyone=args.fiftyone,
        tree=_tree_of(args, runs[0]),
    )
    print(f"report    {page}  ({page.stat().st_size / 1e6:.1f} MB, opens in any browser)")
    if args.fiftyone:
        print(f"fiftyone  python {folder_of(page) / FIFTYONE}  (where fiftyone is installed)")
    return 0
