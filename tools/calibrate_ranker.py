"""Fit a ranker's temperature and weight, and when not to ask. The same as `rar-mmdet calibrate ranker`."""

import sys

from rar_mmdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", "ranker", *sys.argv[1:]]))
