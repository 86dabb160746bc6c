"""`rar-mmdet` for a launcher that starts it on several processes of a CPU, which count as GPUs.

accelerate gives FSDP to GPUs alone; torch splits a model over processes of a CPU as well.
"""

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from rar_mmdet.cli import main

begin = PartialState.__init__


def begin_as_on_gpus(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if self.distributed_type is DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = begin_as_on_gpus
    sys.exit(main())
