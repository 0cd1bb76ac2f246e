"""Events about Nodes and ImagePrefetches, for people who run ``kubectl describe``.

A separate task writes them, so that neither the release of a node nor other work waits for the
API server to accept an Event.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from typing import Any

from imagegate.api.fields import timestamp
from imagegate.errors import ImagegateError
from imagegate.kube.client import Client

logger = logging.getLogger(__name__)

NAMESPACE = "default"
"""Kubernetes itself writes the Events of cluster-scoped objects to this namespace."""
MAX_MESSAGE = 1000
PENDING = 5000
"""Largest number of queued Events: as many as nodes may join at once."""
WRITERS = 2
LAST_WORDS = 2.0
"""Seconds for writing the queued Events when the process ends."""


@dataclass(frozen=True, slots=True)
class _Said:
    """An Event in the queue."""

    involved: dict[str, str]
    reason: str
    message: str
    at: float
    warning: bool


class Events:
    """Best effort: an Event that cannot be written, or does not fit in the queue, is logged and
    dropped.
    """

    def __init__(self, client: Client, *, component: str, instance: str) -> None:
        self._client = client
        self._component = component
        self._instance = instance
        self._pending: asyncio.Queue[_Said] = asyncio.Queue(PENDING)

    async def run(self) -> None:
        """Write Events until cancelled; then call `flush`."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(WRITERS):
                    group.create_task(self._work())
        finally:
            await self.flush()

    async def _work(self) -> None:
        while True:
            await self._write(await self._pending.get())

    async def flush(self) -> None:
        """Write the queued Events within `LAST_WORDS` seconds, because the process ends."""
        try:
            async with asyncio.timeout(LAST_WORDS):
                while not self._pending.empty():
                    if not await self._write(self._pending.get_nowait()):
                        break  # The other Events would be refused, too.
        except TimeoutError:
            pass
        if not self._pending.empty():
            logger.warning("events not written", extra={"count": self._pending.qsize()})

    def node(
        self, name: str, uid: str, reason: str, message: str, now: float, *, warning: bool = False
    ) -> None:
        # Use the Node's uid. The kubelet puts the Node's name in place of the uid in its own
        # events; `kubectl describe node` searches for both.
        involved = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
        self._say(_Said(involved, reason, message, now, warning))

    def prefetch(
        self, name: str, uid: str, reason: str, message: str, now: float, *, warning: bool = False
    ) -> None:
        involved = {
            "apiVersion": "imagegate.dev/v1alpha1",
            "kind": "ImagePrefetch",
            "name": name,
            "uid": uid,
        }
        self._say(_Said(involved, reason, message, now, warning))

    def _say(self, said: _Said) -> None:
        try:
            self._pending.put_nowait(said)
        except asyncio.QueueFull:
            logger.warning(
                "event not written",
                extra={"reason": said.reason, "error": f"{PENDING} wait to be written already"},
            )

    async def _write(self, said: _Said) -> bool:
        """Write an Event. Returns whether the API server has accepted it."""
        involved, reason, message, now = said.involved, said.reason, said.message, said.at
        key = f"{involved['uid']}/{reason}/{message}/{now}"
        suffix = hashlib.sha256(key.encode()).hexdigest()[:16]
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{involved['name'][:200]}.{suffix}", "namespace": NAMESPACE},
            "involvedObject": involved,
            "reason": reason,
            "message": message[:MAX_MESSAGE],
            "type": "Warning" if said.warning else "Normal",
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            "firstTimestamp": timestamp(now),
            "lastTimestamp": timestamp(now),
            "count": 1,
        }
        try:
            await self._client.create(f"/api/v1/namespaces/{NAMESPACE}/events", body)
        except ImagegateError as error:
            logger.warning("event not written", extra={"reason": reason, "error": str(error)})
            return False
        return True
