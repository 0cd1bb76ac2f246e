"""Events about Nodes and ImagePrefetches, for people who run ``kubectl describe``.

They are written by a task of their own: neither the release of a node nor anything else waits for
the API server to take one.
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
"""Where Kubernetes itself puts the events of cluster-scoped objects."""
MAX_MESSAGE = 1000
PENDING = 5000
"""Events that wait to be written at most: as many as nodes may join at once."""
WRITERS = 2
LAST_WORDS = 2.0
"""Seconds that a process that ends gives to the Events that wait."""


@dataclass(frozen=True, slots=True)
class _Said:
    """An Event that is still to be written."""

    involved: dict[str, str]
    reason: str
    message: str
    at: float
    warning: bool


class Events:
    """Best effort: an Event that cannot be written is logged and otherwise forgotten, and so is
    one for which there is no room.
    """

    def __init__(self, client: Client, *, component: str, instance: str) -> None:
        self._client = client
        self._component = component
        self._instance = instance
        self._pending: asyncio.Queue[_Said] = asyncio.Queue(PENDING)

    async def run(self) -> None:
        """Write until cancelled; then, for a moment, what still waits."""
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
        """Write what waits, within a moment: the process ends."""
        try:
            async with asyncio.timeout(LAST_WORDS):
                while not self._pending.empty():
                    if not await self._write(self._pending.get_nowait()):
                        break  # neither would the others be taken
        except TimeoutError:
            pass
        if not self._pending.empty():
            logger.warning("events not written", extra={"count": self._pending.qsize()})

    def node(
        self, name: str, uid: str, reason: str, message: str, now: float, *, warning: bool = False
    ) -> None:
        # The kubelet, and so `kubectl describe node`, refers to a Node by its name as the uid
        # for its own events and by the uid for others; describe searches for both.
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
        """Whether the API server has taken the Event."""
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
