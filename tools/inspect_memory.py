"""Look into a memory folder; `--help` tells more. The same as `rar-mmdet memory inspect`."""

from __future__ import annotations

import sys

from rar_mmdet import cli


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return cli.main(["memory", "inspect", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
