"""Score a result file under the LVIS, COCO or V3Det protocol. The same as `rar-mmdet score`."""

import sys

from rar_mmdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
