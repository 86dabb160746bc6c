"""Look into a memory folder; `--help` tells more. The same as `rar-mmdet memory inspect`."""

import sys

from rar_mmdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["memory", "inspect", *sys.argv[1:]]))
