"""Score a result file under the LVIS, COCO or V3Det protocol. The same as `rar-mmdet score`."""

from __future__ import annotations

import sys

from rar_mmdet import cli


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return cli.main(["score", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
