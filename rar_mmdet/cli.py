"""The command `rar-mmdet`: each subcommand hands its arguments to the part of the package that does the work."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rar_mmdet import __version__
from rar_mmdet.errors import RarError

__all__ = ["main"]

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """A subcommand: the module whose `main(argv)` runs it is imported only then."""

    module: str
    summary: str


COMMANDS = {
    "calibrate-regions": Command("rar_mmdet.calibration.command", "find crop scale and blur on training images"),
    "build-memory": Command(
        "rar_mmdet.build_memory", "the memory of a config: names, and exemplars from annotated photos"
    ),
    "inspect-memory": Command("rar_mmdet.inspect_memory", "what a memory holds, what is near what, what is missing"),
    "doctor": Command("rar_mmdet.doctor", "what is installed against what is supported, and what to type"),
    "new-config": Command("rar_mmdet.new_config", "configs for your own annotated photos (COCO, LVIS or YOLO)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="rar-mmdet",
        description="RAR: recognition by retrieving and ranking.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
        + "\n\nrar-mmdet COMMAND --help tells more.",
    )
    parser.add_argument("--version", action="version", version=f"rar_mmdet {__version__}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help=" | ".join(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    args = parser.parse_args(argv)
    try:
        return int(importlib.import_module(COMMANDS[args.command].module).main(args.arguments) or 0)
    except RarError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
