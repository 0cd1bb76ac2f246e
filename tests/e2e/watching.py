"""Watches of the API server for tests: every version of an object, and the time of its event.

A watch is an independent witness, because any other client gets the same versions in the same
order.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.cluster.provider import Cluster
from tests.e2e.installation import KEY


@dataclass(frozen=True)
class Sighting:
    at: float
    """Seconds since the epoch."""
    type: str
    body: dict[str, Any]

    def taints(self) -> list[str]:
        return [taint["key"] for taint in self.body["spec"].get("taints") or []]


@dataclass
class Watch:
    """A watch of one collection for the length of a ``with`` block."""

    cluster: Cluster
    path: str
    sightings: list[Sighting] = field(default_factory=list)
    _begun: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        """Returns after all existing objects were received, so that new events arrive immediately.
        The API server marks the end of the existing objects with a bookmark (a watch-list, on by
        default since Kubernetes 1.34).
        """
        query = (
            "watch=true&timeoutSeconds=900&sendInitialEvents=true&allowWatchBookmarks=true"
            "&resourceVersionMatch=NotOlderThan"
        )
        command = self.cluster.command("kubectl", "get", "--raw", f"{self.path}?{query}")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        if not self._begun.wait(60):
            self.__exit__(None, None, None)
            raise AssertionError(f"the watch of {self.path} did not begin within 60 s")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join(10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                event = json.loads(line)
                if event["type"] == "BOOKMARK":
                    self._begun.set()
                else:
                    self.sightings.append(Sighting(time.time(), event["type"], event["object"]))

    def of(self, name: str, since: float = 0.0) -> list[Sighting]:
        return [
            seen
            for seen in list(self.sightings)
            if seen.body["metadata"]["name"] == name and seen.at >= since
        ]

    def first(
        self, name: str, what: Callable[[Sighting], bool], since: float = 0.0, timeout: float = 60
    ) -> Sighting:
        """Wait for the first version of the object for which ``what`` is true. The end of an older
        object of that name is no version, and on a loaded machine it may be reported late.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for seen in self.of(name, since):
                if seen.type != "DELETED" and what(seen):
                    return seen
            time.sleep(0.02)
        raise AssertionError(f"{name}: no such version within {timeout:.0f} s")


class NodeWatch(Watch):
    """Every version of every Node."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster, "/api/v1/nodes")


def held(seen: Sighting) -> bool:
    return KEY in seen.taints()


def released(seen: Sighting) -> bool:
    """Whether a change of a Node was seen that carries no gate taint."""
    return seen.type == "MODIFIED" and KEY not in seen.taints()


def is_ready(seen: Sighting) -> bool:
    conditions = seen.body["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
