"""Build the memory a config describes; `--help` tells more. The same as `rar-mmdet memory build`."""

from rar_mmdet.build_memory import main

if __name__ == "__main__":
    raise SystemExit(main())
