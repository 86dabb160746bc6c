"""Several sets in one table, laid out as the paper's Table 1: cACC and sACC of each set, and their averages.

    rar-mmdet names table work_dirs/names-run/cub200 work_dirs/names-run/stanford_cars ...

Each folder is a run of `rar-mmdet classify CONFIG --names ...`. No model runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rar_mmdet.classification.naming.scores import read_summaries, sets_table

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, one for each set")
    print(sets_table(read_summaries(parser.parse_args(argv).runs)))
    return 0
