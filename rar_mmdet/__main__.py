"""`python -m rar_mmdet` is `rar-mmdet`."""

import sys

from rar_mmdet.cli import main

sys.exit(main())
