"""Fit a ranker's temperature, its weight in the fusion, and when not to ask; --help tells more."""

import sys

from rar_mmdet.calibration.ranker_command import main

if __name__ == "__main__":
    sys.exit(main())
