"""The Lease of the election (coordination.k8s.io/v1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagegate.kube.client import Client

ADDRESS = "imagegate.dev/hooks-address"
"""Annotation: where the holder receives push hooks, for those who do not lead."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What the Lease says; ``version`` is the resourceVersion that a replace must present."""

    holder: str = ""
    duration: int = 15
    renew_time: str = ""
    acquire_time: str = ""
    transitions: int = 0
    version: str = ""
    address: str = ""


class Leases:
    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self._client = client
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._namespace = namespace
        self._name = name

    async def get(self) -> LeaseRecord:
        """Raises NotFound when nobody has ever been elected."""
        return self._parse(await self._client.get(self._path))

    async def create(self, record: LeaseRecord) -> LeaseRecord:
        """Raises AlreadyExists when another was faster."""
        return self._parse(await self._client.create_unfenced(self._collection, self._body(record)))

    async def replace(self, record: LeaseRecord) -> LeaseRecord:
        """Raises Conflict when it was changed since ``record.version``."""
        return self._parse(await self._client.replace(self._path, self._body(record), fenced=False))

    def _body(self, record: LeaseRecord) -> dict[str, Any]:
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        if record.address:
            metadata["annotations"] = {ADDRESS: record.address}
        if record.version:
            metadata["resourceVersion"] = record.version
        spec: dict[str, Any] = {
            "holderIdentity": record.holder,
            "leaseDurationSeconds": record.duration,
            "leaseTransitions": record.transitions,
        }
        if record.renew_time:
            spec["renewTime"] = record.renew_time
        if record.acquire_time:
            spec["acquireTime"] = record.acquire_time
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": spec,
        }

    @staticmethod
    def _parse(body: dict[str, Any]) -> LeaseRecord:
        spec, metadata = body.get("spec") or {}, body.get("metadata") or {}
        return LeaseRecord(
            holder=spec.get("holderIdentity") or "",
            duration=int(spec.get("leaseDurationSeconds") or 15),
            renew_time=spec.get("renewTime") or "",
            acquire_time=spec.get("acquireTime") or "",
            transitions=int(spec.get("leaseTransitions") or 0),
            version=metadata.get("resourceVersion", ""),
            address=(metadata.get("annotations") or {}).get(ADDRESS, ""),
        )
