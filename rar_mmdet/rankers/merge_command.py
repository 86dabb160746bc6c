"""Answers of many machines in one file; of two answers to one question the first stays, and is counted.

    rar-mmdet answers merge work_dirs/a/answers.*.sqlite other/answers.node7.sqlite --out work_dirs/all/answers.sqlite

Files are read in the order given and never changed; one of a machine that is at work is read as it stands. OUT may
exist: what it has stays. Give OUT as `cache` of a ranker, and nothing that is in it is asked again.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from rar_mmdet.errors import ConfigError, RankerError
from rar_mmdet.rankers.cache import AnswerCache, DamagedCacheError, read_answers

__all__ = ["main", "merge_answers"]


def merge_answers(files: Sequence[Path], out: Path) -> Counter[str]:
    """Add the answers of `files` to `out`.

    Returns:
        how many were added, were there already with the same text (same), or with another one (conflicts), and how many
        entries do not match their checksum (damaged).

    Raises:
        RankerError: a file cannot be read, or is none of ours; `out` has what was added before.
    """
    counts: Counter[str] = Counter(added=0, same=0, conflicts=0, damaged=0)
    target = AnswerCache(out)
    for file in tqdm(files, desc="merge", unit="file", disable=None):
        try:
            for texts in read_answers(file):
                sound = {key: text for key, text in texts.items() if text is not None}
                known, kept = target.get(list(sound)), target.put(sound)
                differing = sum(kept[key] != text for key, text in sound.items())
                counts["damaged"] += len(texts) - len(sound)
                counts["added"] += len(sound) - len(known)
                counts["conflicts"] += differing
                counts["same"] += len(known) - differing
        except (sqlite3.Error, DamagedCacheError, OSError) as error:
            raise RankerError(
                f"{file} cannot be read as answers of a ranker: {error}. Leave it out and merge the others"
            ) from error
    target.close()
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "rar-mmdet answers merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="answers*.sqlite of the machines")
    parser.add_argument("--out", type=Path, required=True, help="the file they are added to")
    args = parser.parse_args(argv)
    if args.out.resolve() in [file.resolve() for file in args.files]:
        raise ConfigError(f"{args.out} is both a file to merge and --out; leave it out, what it has stays in any case")
    counts = merge_answers(args.files, args.out)
    print(
        f"{args.out}: {counts['added']} answers added of {len(args.files)} files, {counts['same']} were there, "
        f"{counts['conflicts']} conflicts (the first answer stays), {counts['damaged']} damaged entries left out"
    )
    return 0
