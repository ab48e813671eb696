"""Free TCP ports of the loopback."""

from __future__ import annotations

import os
import random
import socket
import threading

_numbers = random.Random(os.getpid())
_given = threading.Lock()


def free_port() -> int:
    """Any free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_base(count: int = 3) -> int:
    """A port from which `count` blocks of a hundred are free, below the range that clients' sockets use.

    Of a block the ports that tests use are looked at: a worker's, its NCCL port, and five for bootstrap servers.
    """
    with _given:
        for _ in range(200):
            base = _numbers.randrange(10000, 28000)
            if all(
                is_free(base + 100 * block + offset) for block in range(count) for offset in (0, 10, *range(50, 55))
            ):
                return base
    raise AssertionError("no free ports")


def is_free(port: int) -> bool:
    """Whether it can be bound, leftovers of closed connections aside."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True
