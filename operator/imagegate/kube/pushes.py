"""The ConfigMap of the chart through which pushes get from the process that receives them to the
leader: the API server authenticates both, and says who may write.
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
        """The new version. Raises Conflict when it was changed since ``version``."""
        body = {"metadata": {"resourceVersion": version}, "data": {_KEY: text}}
        return _read(await self._client.patch(self._path, body, MERGE_PATCH))[1]


def collection(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


def selector(name: str) -> dict[str, str]:
    """RBAC compares resourceNames with this where a collection is listed or watched."""
    return {"fieldSelector": f"metadata.name={name}"}


def text(body: Mapping[str, Any]) -> str:
    return _read(body)[0]


def _read(body: Mapping[str, Any]) -> tuple[str, str]:
    return (body.get("data") or {}).get(_KEY) or "", (body["metadata"]).get("resourceVersion", "")
