"""Processes of one run that learn of each other's failure, instead of waiting for ever for one that is gone."""

from __future__ import annotations

import logging
import os
import sys
import threading
from datetime import timedelta
from types import TracebackType

from torch import distributed

__all__ = ["EXIT_PEER_FAILED", "PeerWatch"]

EXIT_PEER_FAILED = 3
_KEY = "rar_mmdet/failure"
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_END = 30.0  # between the end of the first process and that of the others, in a run that ends well
_CONNECT = timedelta(seconds=30)

logger = logging.getLogger(__name__)


class PeerWatch:
    """While it is entered, a process whose peer fails ends too, with that peer's message and `EXIT_PEER_FAILED`.

    A collective of NCCL has no end before its time-out, and a launcher sees the processes of its own machine alone. So
    a failing process leaves a note in the key-value store of the process group, where a thread of each process looks.
    """

    def __init__(self) -> None:
        self._store: distributed.Store | None = None
        self._done = threading.Event()

    def __enter__(self) -> PeerWatch:
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            self._store = _connect()
        if self._store is not None:
            threading.Thread(target=self._look, name="peer watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if error is not None and self._store is not None:
            try:
                self._store.set(_KEY, f"{distributed.get_rank()}|{kind.__name__ if kind else ''}: {error}")
            except RuntimeError:  # the store is gone, and with it the process that could be told
                logger.debug("the other processes could not be told of the failure")

    def _look(self) -> None:
        assert self._store is not None, "started with a store only"
        while not self._done.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                if not self._store.check([_KEY]):
                    continue
                rank, _, message = self._store.get(_KEY).decode(errors="replace").partition("|")
            except RuntimeError:  # the store went down with the first process, which may have ended well
                if self._done.wait(_SECONDS_TO_END):
                    return
                rank, message = "0", "it is gone, and with it the store of the run"
            if rank == str(distributed.get_rank()):
                return  # the failure is this process's own, and on its way out
            if not self._done.is_set():
                sys.stderr.write(f"process {rank} failed, so this one ends too: {message}\n")
                logging.shutdown()
                # Not an exception: the main thread may sit in a collective that nothing interrupts.
                os._exit(EXIT_PEER_FAILED)


def _connect() -> distributed.Store | None:
    """A connection of its own to the store of the process group; `None` where there is no address to be had."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not port:
        return None
    try:
        return distributed.TCPStore(address, int(port), is_master=False, wait_for_workers=False, timeout=_CONNECT)
    except (RuntimeError, ValueError) as error:
        logger.warning("processes cannot watch each other, so a failure may be noticed late (%s)", error)
        return None
