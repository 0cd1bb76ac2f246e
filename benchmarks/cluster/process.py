"""One replica of the operator, as a process of this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.cluster import metrics, programs
from tests.cluster import LocalCluster
from tests.cluster.errors import ClusterError
from tests.cluster.local.processes import Process

_RESET_PEAK = "5"
"""proc(5), clear_refs: the peak of the resident memory is counted from now."""


@dataclass
class Operator:
    cluster: LocalCluster
    identity: str
    port: int
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    process: Process | None = None
    started: float = 0.0
    """Seconds since the epoch."""

    def start(self) -> None:
        self.started = time.time()
        self.process = programs.launch(
            self.cluster, self.identity, "imagegate", *self.arguments, **self.environment
        )

    def stop(self) -> None:
        """SIGTERM: the Lease is released."""
        self.cluster.control_plane.group.stop(self.identity, grace=30)
        self.process = None

    def kill(self) -> None:
        self._running.signal(signal.SIGKILL)
        self.cluster.control_plane.group.stop(self.identity, grace=0)
        self.process = None

    @property
    def _running(self) -> Process:
        if self.process is None or not self.process.alive:
            tail = self.process.tail() if self.process else ""
            raise ClusterError(f"the operator does not run:\n{tail}")
        return self.process

    @property
    def pid(self) -> int:
        return self._running.pid

    # ---- what it costs

    def cpu(self) -> float:
        return programs.cpu(self.pid)

    def peak(self) -> int:
        """Bytes: the largest resident memory since `reset_peak`."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        raise ClusterError("no VmHWM in /proc")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text(_RESET_PEAK)

    # ---- what it says

    def said(self, message: str) -> Iterator[dict[str, Any]]:
        """The lines of its log with this message; ``time`` is in seconds since the epoch."""
        with self.cluster.control_plane.group.log(self.identity).open() as lines:
            for line in lines:
                if f'"{message}"' in line and line.endswith("\n"):
                    entry: dict[str, Any] = json.loads(line)
                    if entry["msg"] == message:
                        yield {**entry, "time": datetime.fromisoformat(entry["time"]).timestamp()}

    @cached_property
    def _forwarded(self) -> int:
        return self.cluster.forward("127.0.0.1", self.port)

    def get(self, path: str) -> str | None:
        """The answer of its HTTP server; None: it does not answer, or with an error."""
        connection = http.client.HTTPConnection("127.0.0.1", self._forwarded, timeout=30)
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
            return text if response.status == 200 else None
        return None

    def decided(self, prefetch: str) -> int:
        """For how many nodes it knows that they hold the images of the prefetch."""
        text = self.get("/metrics")
        if text is None:
            return 0
        samples = metrics.parse(text.splitlines(), "imagegate_nodes")
        wanted = frozenset({("prefetch", prefetch), ("state", "cached")})
        return int(samples.get(("imagegate_nodes", wanted), 0))
