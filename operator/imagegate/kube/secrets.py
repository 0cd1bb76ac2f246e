"""Reads pull secrets: only those that an ImagePrefetch names, only in the puller namespaces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from imagegate.kube.client import Client
from imagegate.kube.errors import NotFound


class Secrets:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def get(self, namespace: str, names: Iterable[str]) -> list[dict[str, Any]]:
        """The secrets that exist, in this order. The kubelet, too, ignores secrets that do not.

        Raises :class:`~imagegate.kube.errors.Forbidden` if the chart's
        ``registry.readPullSecrets`` is off.
        """
        found: list[dict[str, Any]] = []
        for name in names:
            try:
                path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
                found.append(await self._client.get(path))
            except NotFound:
                continue
        return found
