"""Free ports on loopback."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

CLUSTERS = range(20000, 30000)
"""The ports of clusters; each cluster records its own before it listens on them."""
OTHERS = range(10000, 20000)
"""The ports of servers of single tests."""


def free(count: int, within: range, taken: Iterable[int] = ()) -> list[int]:
    """Ports on which no process listens.

    They are not in the kernel's ephemeral range, from which ``bind`` to port 0 would choose: any
    connection of another process could get such a port before the server listens on it.
    """
    candidates = random.SystemRandom().sample(within, 200)
    return [port for port in candidates if port not in taken and _is_free(port)][:count]


def one() -> int:
    """A port for a server of a test."""
    return free(1, OTHERS)[0]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
