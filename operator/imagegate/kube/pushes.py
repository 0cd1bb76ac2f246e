"""The chart's ConfigMap that carries pushes from the receiving process to the leader. The API
server authenticates both processes and authorizes the writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagegate.kube.client import MERGE_PATCH, Client

_KEY = "pushes"


class Pushes:
    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self._client = client
        self._path = f"{collection(namespace)}/{name}"

    async def get(self) -> tuple[str, str]:
        """The text, and the resourceVersion for `replace`."""
        return _read(await self._client.get(self._path))

    async def replace(self, text: str, version: str) -> str:
        """Returns the new version. Raises Conflict if the text has changed since ``version``."""
        body = {"metadata": {"resourceVersion": version}, "data": {_KEY: text}}
        return _read(await self._client.patch(self._path, body, MERGE_PATCH))[1]


def collection(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


def selector(name: str) -> dict[str, str]:
    """The selector of a list or watch. RBAC compares its name with resourceNames."""
    return {"fieldSelector": f"metadata.name={name}"}


def text(body: Mapping[str, Any]) -> str:
    return _read(body)[0]


def _read(body: Mapping[str, Any]) -> tuple[str, str]:
    return (body.get("data") or {}).get(_KEY) or "", (body["metadata"]).get("resourceVersion", "")
