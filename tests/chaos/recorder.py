"""The witness's sources: watches of the API server, containerd's events and the audit log.

The sources survive restarts of the observed programs. A watch resumes from its last version, so it
misses nothing when the API server restarts. If the API server refuses that version (410 Gone),
there is a gap, and the history has a Snapshot there.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tests.chaos.evidence import Write
from tests.chaos.history import Body, Entry, Seen, Snapshot, name, seconds
from tests.cluster.errors import ClusterError
from tests.cluster.local.events import ImageEvents
from tests.e2e.installation import PREFETCHES, PULLERS

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.node import Node

_T = TypeVar("_T")
_PULLERS = "labelSelector=imagegate.dev%2Fprefetch"
COLLECTIONS = {
    "Node": ("/api/v1/nodes", ""),
    "Pod": (f"/api/v1/namespaces/{PULLERS}/pods", _PULLERS),
    "ImagePrefetch": (PREFETCHES, ""),
    "NodeGate": ("/apis/imagegate.dev/v1alpha1/nodegates", ""),
}
_GONE = ("Expired", "Gone", "too old resource version")


class Stream:
    """The events of one collection: lists it, watches it, and repeats this until closed."""

    def __init__(self, cluster: LocalCluster, kind: str) -> None:
        self.kind = kind
        self.gaps = 0
        self._cluster = cluster
        self._path, self._query = COLLECTIONS[kind]
        self._entries: list[Entry] = []
        self._current: dict[str, int] = {}
        self._lock = threading.Lock()
        self._version = ""
        self._heard = 0.0
        self._process: subprocess.Popen[str] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"watch-{kind}")
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._interrupt()
        self._thread.join(15)

    def take(self, until: int) -> list[Entry]:
        """Returns and removes all entries up to a version."""
        with self._lock:
            taken = [entry for entry in self._entries if entry.version <= until]
            self._entries = [entry for entry in self._entries if entry.version > until]
        return taken

    def catch_up(self, timeout: float = 30.0) -> int:
        """Waits until every change before this call is received. Returns the version of a list that
        was read at the beginning of this call."""
        body = self._list()
        version = int(body["metadata"]["resourceVersion"])
        listed = {name(item): int(item["metadata"]["resourceVersion"]) for item in body["items"]}
        end = time.monotonic() + timeout
        nudge = time.monotonic() + timeout / 2
        while not self._has(listed, version):
            if time.monotonic() > nudge:  # the connection may be dead without an error
                nudge = float("inf")
                self._interrupt()
            if time.monotonic() > end:
                raise ClusterError(f"the witness receives no events of {self.kind} any more")
            time.sleep(0.05)
        return version

    def _has(self, listed: dict[str, int], version: int) -> bool:
        with self._lock:
            heard = all(self._current.get(each, 0) >= at for each, at in listed.items())
            gone = [n for n, at in self._current.items() if n not in listed and at <= version]
        return heard and not gone

    def _interrupt(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def _list(self) -> dict[str, Any]:
        query = f"?{self._query}" if self._query else ""
        return self._cluster.api.get(self._path + query)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                if not self._version:
                    self._relist()
                self._watch()
            except (ClusterError, OSError, ValueError, KeyError):
                pass  # the API server is down, which these tests cause
            self._closed.wait(0.5)

    def _relist(self) -> None:
        body = self._list()
        version = int(body["metadata"]["resourceVersion"])
        items = tuple(body["items"])
        with self._lock:
            self.gaps += bool(self._entries or self._current)
            now = time.time()
            self._entries.append(Snapshot(self.kind, version, now, items, self._heard or now))
            self._heard = now
            self._current = {name(item): int(item["metadata"]["resourceVersion"]) for item in items}
        self._version = str(version)

    def _watch(self) -> None:
        query = f"watch=true&allowWatchBookmarks=true&timeoutSeconds=900&{self._query}"
        command = self._cluster.command(
            "kubectl", "get", "--raw", f"{self._path}?{query}&resourceVersion={self._version}"
        )
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        with self._process as process, self._process.stdout as lines, self._process.stderr as said:
            try:
                for line in lines:
                    if not self._hear(json.loads(line)):
                        return
                if any(word in said.read() for word in _GONE):
                    self._version = ""
            finally:
                process.kill()

    def _hear(self, event: dict[str, Any]) -> bool:
        """Records one event. Returns False if this watch cannot continue."""
        body: Body = event["object"]
        if event["type"] == "ERROR":
            if body.get("code") == 410:
                self._version = ""
            return False
        version = body["metadata"]["resourceVersion"]
        if event["type"] != "BOOKMARK":
            seen = Seen(self.kind, event["type"], int(version), time.time(), body)
            with self._lock:
                self._entries.append(seen)
                if event["type"] == "DELETED":
                    self._current.pop(name(body), None)
                else:
                    self._current[name(body)] = int(version)
        self._version, self._heard = version, time.time()
        return True


class Audit:
    """The writes in the API server's audit log. Each refresh reads the new lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._lock = threading.Lock()
        self._writes: dict[tuple[str, str], list[Write]] = {}
        self._all: list[Write] = []

    def refresh(self) -> None:
        with self._lock, self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._add(line)

    def writes(self, resource: str, name: str, since: float, until: float) -> list[Write]:
        """The successful writes to one object."""
        found = self._writes.get((resource, name), ())
        return [write for write in found if since <= write.at <= until]

    def by(self, user: str, since: float) -> list[Write]:
        """All writes of a user, including refused writes, because a client that repeats refused
        writes is not idle."""
        return [write for write in self._all if write.user == user and write.at >= since]

    def _add(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return  # incomplete, because the API server was killed
        verb, code = event["verb"], (event.get("responseStatus") or {}).get("code", 0)
        if verb in ("get", "list", "watch"):
            return
        reference = event.get("objectRef") or {}
        resource = str(reference.get("resource", ""))
        if sub := reference.get("subresource"):
            resource += f"/{sub}"
        write = Write(
            seconds(event["stageTimestamp"]),
            str(event["user"].get("username", "")),  # empty if authentication failed
            verb,
            resource,
            str(reference.get("name", "")),
            seconds(event["requestReceivedTimestamp"]),
        )
        self._all.append(write)
        if 200 <= code < 300:
            self._writes.setdefault((resource, write.name), []).append(write)


@dataclass(slots=True)
class _Life:
    """The images of a node during one run of its containerd."""

    since: float
    until: float
    events: ImageEvents
    there: frozenset[str]

    def holds(self, image: str, at: float) -> bool:
        held = image in self.there
        for line in self.events.path.read_text().splitlines() if self.events.path.exists() else ():
            event = json.loads(line)
            if event["name"] == image and event["time"] <= at:
                held = event["kind"] != "delete"
        return held


class Containerd:
    """Which images the real nodes had at which time, from containerd's events."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lives: dict[str, list[_Life]] = {}
        self._lock = threading.Lock()

    def attach(self, node: Node) -> None:
        """Starts to record a node's events. Call this after containerd has started."""
        with self._lock:
            lives = self._lives.setdefault(node.name, [])
            events = node.image_events(self._folder / f"{node.name}-{len(lives)}.jsonl")
            there = frozenset(node.images())
            lives.append(_Life(time.time(), float("inf"), events, there))

    def detach(self, name: str) -> None:
        """Ends the record of a node that is down or deleted. A later start begins a new record."""
        with self._lock:
            for life in self._lives.get(name, []):
                if life.until == float("inf"):
                    life.until = time.time()
                    life.events.close()

    def present(self, node: str, image: str, at: float) -> bool | None:
        lives = self._lives.get(node, [])
        earlier = [life for life in lives if life.since <= at]
        if not earlier:
            # Before the first record it is unknown when an existing image was pulled.
            return None
        return earlier[-1].holds(image, min(at, earlier[-1].until))

    def close(self) -> None:
        for node in list(self._lives):
            self.detach(node)


class Recorder:
    """All sources, for the length of a session."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.containerd = Containerd(folder)
        self.audit = Audit(cluster.control_plane.folder / "audit.log")
        self._streams = [Stream(cluster, kind) for kind in COLLECTIONS]

    @property
    def gaps(self) -> int:
        return sum(stream.gaps for stream in self._streams)

    def next(self) -> list[Entry]:
        """The complete history since the last call, in the order of versions."""
        until = min(stream.catch_up() for stream in self._streams)
        self.audit.refresh()
        entries = [entry for stream in self._streams for entry in stream.take(until)]
        return sorted(entries, key=lambda entry: entry.version)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self.containerd.close()


def insist(do: Callable[[], _T], what: str, timeout: float = 60.0) -> _T:
    """Repeats a request of the tests themselves while the API server is down."""
    end = time.monotonic() + timeout
    while True:
        try:
            return do()
        except (ClusterError, OSError) as error:
            if time.monotonic() > end:
                raise ClusterError(f"{what}: {error}") from error
            time.sleep(0.3)
