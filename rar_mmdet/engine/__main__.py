"""`python -m rar_mmdet.engine CONFIG ...` is `python tools/test.py CONFIG ...`, also where no checkout is at hand."""

import sys

from rar_mmdet.engine.command import main

sys.exit(main())
