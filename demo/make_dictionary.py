"""Make the demo's dictionary: the world's 600 names among 5,000 others, in the layout of WordNet's index of nouns.

    python demo/make_dictionary.py --out data/demo_dictionary

writes ``index.noun``, which ``rar_mmdet.classification.naming.read_nouns`` reads as it reads WordNet's own. The same
bytes at every call. It is no dictionary of English: the others are things with the world's colours and patterns
("striped red lantern"), the world's shapes with other looks ("rusty red circle") and bare nouns, so that a search in
it can go wrong in all three words. Which of the 600 names the photos show is not in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from world import CLASS_NAMES, COLOURS, PATTERNS, SHAPES

NUM_OTHERS = 5000
LOOKS = ("rusty", "shiny", "broken", "wooden", "woven", "frosted", "faded", "glossy")
THINGS = """
    anchor apron arch badge banner barrel basket bead bell belt blanket board boat bonnet bottle bowl box
    bracelet brick bridge brush bucket buckle button candle canoe cap card carpet cart chain chair chest
    clock coat coin collar comb cork crown cup curtain cushion dial dish door dress drum fan feather fence
    flag flask fork frame funnel gate glove goblet hammer handle hat helmet hinge hook horn jar jug kettle
    key kite ladder lamp lantern leaf lid mask mirror mitten mug nail necklace needle oar
""".split()  # noqa: SIM905 - a list to read, not to count commas in
HEADER = (
    "  1 A made-up dictionary in the layout of WordNet 3.0, written by demo/make_dictionary.py of RAR.  ",
    "  2 It holds no word of Princeton's; each name has a synset of its own.  ",
)


def other_names() -> list[str]:
    """Names of nothing that the world shows."""
    names = [f"{pattern} {colour} {thing}" for thing in THINGS for pattern in PATTERNS for colour in COLOURS]
    names = [f"{look} {colour} {shape}" for look in LOOKS for colour in COLOURS for shape in SHAPES] + THINGS + names
    assert len(set(names)) == len(names) >= NUM_OTHERS
    return names[:NUM_OTHERS]


def write_dictionary(out: Path) -> Path:
    """Write ``index.noun``: lemma, part of speech, senses, no pointers, senses, tagged senses, offset of its synset."""
    names = sorted(name.replace(" ", "_") for name in (*CLASS_NAMES, *other_names()))
    lines = [f"{name} n 1 0 1 0 {1000 + 100 * place:08d}  " for place, name in enumerate(names)]
    out.mkdir(parents=True, exist_ok=True)
    file = out / "index.noun"
    file.write_text("\n".join([*HEADER, *lines]) + "\n", encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("data/demo_dictionary")
    parser.add_argument("--out", type=Path, default=default, help=f"folder to create (default: {default})")
    file = write_dictionary(parser.parse_args().out)
    print(f"{file}: {len(CLASS_NAMES)} names of the world among {NUM_OTHERS} others")


if __name__ == "__main__":
    main()
