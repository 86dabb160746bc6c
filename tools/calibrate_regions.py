"""Find the crop scale and the blur of a retriever on training images. The same as `rar-mmdet calibrate regions`."""

import sys

from rar_mmdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", "regions", *sys.argv[1:]]))
