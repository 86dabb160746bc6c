"""Find the crop scale and the blur of a retriever on training images. The same as `rar-mmdet calibrate regions`."""

from __future__ import annotations

import sys

from rar_mmdet import cli


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return cli.main(["calibrate", "regions", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
