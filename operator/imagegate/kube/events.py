"""Events about Nodes and ImagePrefetches, for people who run ``kubectl describe``."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from imagegate.domain.status import timestamp
from imagegate.errors import ImagegateError
from imagegate.kube.client import Client

logger = logging.getLogger(__name__)

NAMESPACE = "default"
"""Where Kubernetes itself puts the events of cluster-scoped objects."""
MAX_MESSAGE = 1000


class Events:
    """Best effort: an Event that cannot be written is logged and otherwise forgotten."""

    def __init__(self, client: Client, *, component: str, instance: str) -> None:
        self._client = client
        self._component = component
        self._instance = instance

    async def node(
        self, name: str, uid: str, reason: str, message: str, now: float, *, warning: bool = False
    ) -> None:
        # The kubelet, and so `kubectl describe node`, refers to a Node by its name as the uid
        # for its own events and by the uid for others; describe searches for both.
        involved = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
        await self._write(involved, reason, message, now, warning=warning)

    async def prefetch(
        self, name: str, uid: str, reason: str, message: str, now: float, *, warning: bool = False
    ) -> None:
        involved = {
            "apiVersion": "imagegate.dev/v1alpha1",
            "kind": "ImagePrefetch",
            "name": name,
            "uid": uid,
        }
        await self._write(involved, reason, message, now, warning=warning)

    async def _write(
        self, involved: dict[str, str], reason: str, message: str, now: float, *, warning: bool
    ) -> None:
        key = f"{involved['uid']}/{reason}/{message}/{now}"
        suffix = hashlib.sha256(key.encode()).hexdigest()[:16]
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{involved['name'][:200]}.{suffix}", "namespace": NAMESPACE},
            "involvedObject": involved,
            "reason": reason,
            "message": message[:MAX_MESSAGE],
            "type": "Warning" if warning else "Normal",
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
