"""Score a detector's result file under the LVIS, COCO or V3Det protocol: `python tools/score.py --help`."""

import sys

from rar_mmdet.scoring.command import main

if __name__ == "__main__":
    sys.exit(main())
