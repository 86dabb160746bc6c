"""Ports of this machine for tests, which nothing else takes meanwhile, however long a process needs to begin."""

from __future__ import annotations

import random
import socket

FIRST, LAST = 10_000, 30_000  # below those that systems hand out to whoever asks for any (Linux: from 32,768)


def closed_port() -> socket.socket:
    """A port that refuses, and is taken until the socket is closed: bound, nobody listens."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


def free_port() -> str:
    """A port for a process that will listen at it in a while."""
    while True:
        port = random.SystemRandom().randrange(FIRST, LAST)  # tests seed the usual generator
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return str(port)
