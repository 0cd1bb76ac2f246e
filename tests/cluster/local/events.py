"""The times at which containerd completed images, from its own events and its own clock."""

import datetime as dt
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.errors import ClusterError

# 2026-11-22 08:55:45.123456789 +0000 UTC k8s.io /images/create {"name":"…"}
_LINE = re.compile(r"(\S+ \S+) \+0000 UTC \S+ /images/(create|update|delete) (\{.*\})")


class ImageEvents:
    """A running `ctr events`, written to a file as lines `{"time", "kind", "name"}`.

    containerd creates an image's record after it has fetched and unpacked the whole image. So a pod
    can start from the event's time on.
    """

    def __init__(self, command: list[str], path: Path) -> None:
        self.path = path
        self._seen: dict[str, float] = {}
        self._changed = threading.Condition()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a warning that cgroup v1 is deprecated
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        time.sleep(0.3)  # `ctr events` does not report the start of its subscription

    def created(self, reference: str) -> float | None:
        """The time of the image's first completion in seconds since the epoch, or None."""
        with self._changed:
            return self._seen.get(reference)

    def wait_for(self, reference: str, timeout: float = 60) -> float:
        with self._changed:
            if not self._changed.wait_for(lambda: reference in self._seen, timeout):
                raise ClusterError(f"no event for image {reference} within {timeout:.0f} s")
            return self._seen[reference]

    def close(self) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines, self.path.open("a") as file:
            for line in lines:
                if found := _LINE.match(line):
                    self._record(found, file.write)
                    file.flush()

    def _record(self, found: re.Match[str], write: Callable[[str], int]) -> None:
        when = _epoch(found[1])
        name = json.loads(found[3]).get("name", "")
        write(json.dumps({"time": when, "kind": found[2], "name": name}) + "\n")
        if found[2] == "create":
            with self._changed:
                self._seen.setdefault(name, when)
                self._changed.notify_all()


def _epoch(text: str) -> float:
    """Parses a time of containerd. `datetime` parses microseconds, but containerd prints
    nanoseconds without trailing zeros."""
    moment, _, fraction = text.partition(".")
    parsed = dt.datetime.strptime(moment + "+0000", "%Y-%m-%d %H:%M:%S%z")
    return parsed.timestamp() + float(f"0.{fraction or 0}")
