"""Build the memory a config describes; `--help` tells more. The same as `rar-mmdet memory build`."""

import sys

from rar_mmdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["memory", "build", *sys.argv[1:]]))
