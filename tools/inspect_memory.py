"""Look into a memory folder; `--help` tells more. The same as `rar-mmdet memory inspect`."""

from rar_mmdet.inspect_memory import main

if __name__ == "__main__":
    raise SystemExit(main())
