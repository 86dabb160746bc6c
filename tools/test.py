"""Test (and score) a config.

    python tools/test.py CONFIG [CHECKPOINT] [--work-dir DIR] [--num-images N] [--show-dir DIR] [--cfg-options K=V ...]

The command itself is `rar_mmdet.engine.command`.
"""

import sys

from rar_mmdet.engine.command import main

if __name__ == "__main__":
    sys.exit(main())
