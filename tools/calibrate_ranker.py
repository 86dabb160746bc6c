"""Fit a ranker's temperature and weight on training images: `python tools/calibrate_ranker.py --help`."""

import sys

from rar_mmdet.calibration.ranker import main

if __name__ == "__main__":
    sys.exit(main())
