"""A process ends when another one of its run has failed, though nothing wakes it."""

import os
import subprocess
import sys

from ports import free_port

from rar_mmdet.engine.peers import EXIT_PEER_FAILED

PEER = """
import sys, time, torch
from rar_mmdet.engine.peers import PeerWatch
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
with PeerWatch():
    torch.distributed.barrier()
    if rank == int(sys.argv[1]):
        try:
            with PeerWatch():
                raise RuntimeError("no more photos")
        except RuntimeError:
            time.sleep(600)  # alive, so that the store and the sockets of the others stay as they are
            sys.exit(2)
    time.sleep(600)  # as in a collective that nobody else will join
"""


def test_a_failure_is_heard_of():
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PEER, "0"], env=shared | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        _, said = processes[1].communicate(timeout=600)  # the machine may be busy
        assert processes[1].returncode == EXIT_PEER_FAILED
        assert "process 0 failed, so this one ends too: RuntimeError: no more photos" in said
    finally:
        for process in processes:
            process.kill()
            process.communicate()
