"""Find the crop scale and the blur of a retriever on training images; --help tells more."""

import sys

from rar_mmdet.calibration.command import main

if __name__ == "__main__":
    sys.exit(main())
