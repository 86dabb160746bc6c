"""The command `rar-mmdet`: each subcommand hands its arguments to the part of the package that does the work."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rar_mmdet import __version__
from rar_mmdet.errors import RarError

__all__ = ["COMMANDS", "Command", "main"]

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
GOES_ON = "the same command goes on where it was"


@dataclass(frozen=True)
class Command:
    """A subcommand: the module whose `main(argv)` runs it is imported only then.

    Attributes:
        module: has `main`, which raises `RarError` for what a user can mend.
        summary: a line of the list of commands.
        stopped: what Ctrl-C leaves behind, said after it.
    """

    module: str
    summary: str
    stopped: str = ""


# Name, of one word or two -> what runs it.
COMMANDS = {
    "doctor": Command("rar_mmdet.doctor", "what is installed against what is supported, and what to type"),
    "encoders": Command("rar_mmdet.encoders.command", "published encoders by name, and what to type to get them"),
    "new-config": Command("rar_mmdet.new_config", "configs for your own annotated photos (COCO, LVIS or YOLO)"),
    "score": Command("rar_mmdet.scoring.command", "score a result file as LVIS, COCO or V3Det do, compare two"),
    "label": Command(
        "rar_mmdet.labelling.command",
        "a folder of photos and a list of words in; labels and a review page out",
        GOES_ON,
    ),
    "web": Command("rar_mmdet.labelling.web_command", "the same for one photo in your browser, while you try words"),
    "report": Command(
        "rar_mmdet.report.command", "one page of one or several runs: numbers, figures, regions to look at"
    ),
    "table": Command(
        "rar_mmdet.tables.command", "the paper's tables: ours, as far as they can run here, beside its own"
    ),
    "table encoders": Command("rar_mmdet.tables.encoders_command", "encoders side by side on the boxes of a config"),
    "classify": Command(
        "rar_mmdet.classification.command", "whole photos, few shots: classifiers alone and ranked", GOES_ON
    ),
    "finetune data": Command(
        "rar_mmdet.finetune.data_command", "questions with known answers, to teach a ranker to rank"
    ),
    "finetune train": Command(
        "rar_mmdet.finetune.train_command",
        "teach a ranker to rank: LoRA on a local model",
        "the same command goes on from the last state",
    ),
    "finetune merge": Command("rar_mmdet.finetune.merge_command", "a base model and an adapter as one plain folder"),
    "names find": Command(
        "rar_mmdet.classification.naming.find_command", "find the names of a set without a list of its classes"
    ),
    "names captions": Command("rar_mmdet.classification.naming.captions_command", "encode captions for that"),
    "names table": Command("rar_mmdet.classification.naming.table_command", "found names on several sets in one table"),
    "memory build": Command(
        "rar_mmdet.build_memory", "the memory of a config: names, exemplars from annotated photos", GOES_ON
    ),
    "memory inspect": Command("rar_mmdet.inspect_memory", "what a memory holds, what is near what, what is missing"),
    "answers merge": Command("rar_mmdet.rankers.merge_command", "one file of the rankers' answers of many machines"),
    "calibrate regions": Command("rar_mmdet.calibration.command", "find crop scale and blur on training images"),
    "calibrate detector": Command(
        "rar_mmdet.calibration.detector_command", "fit how a detector's own class and box scores join retrieval's"
    ),
    "calibrate ranker": Command("rar_mmdet.calibration.ranker_command", "fit a ranker's weight, and when to ask"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = next((name for name in (" ".join(words[:2]), *words[:1]) if name in COMMANDS), None)
    if name is None:
        return _explain(words)
    program, sys.argv[0] = sys.argv[0], f"rar-mmdet {name}"  # what its usage line says
    try:
        return int(importlib.import_module(COMMANDS[name].module).main(words[len(name.split()) :]) or 0)
    except RarError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("; ".join(filter(None, ("stopped", COMMANDS[name].stopped))), file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        sys.argv[0] = program


def _explain(words: Sequence[str]) -> int:
    """Help, version, or what was wrong with the command's name; ends the process where argparse does."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="rar-mmdet",
        usage="rar-mmdet COMMAND ...",
        description=f"RAR: recognition by retrieving and ranking.\n\ncommands:\n{listed}",
        epilog="rar-mmdet COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rar_mmdet {__version__}")
    parser.parse_known_args(words)  # answers --help and --version
    if words:
        given = " ".join(words[:2])
        same_group = [name for name in COMMANDS if name.split()[0] == words[0]]
        near = same_group or difflib.get_close_matches(given, COMMANDS, n=3) or list(COMMANDS)
        parser.error(f"no command {given!r}; did you mean one of: {', '.join(near)}?")
    parser.print_help()
    return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
