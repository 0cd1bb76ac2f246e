"""The Lease of the election (coordination.k8s.io/v1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imagegate.kube.client import Client
from imagegate.kube.errors import Conflict, NotFound

TAINT_KEYS = "imagegate.dev/taint-keys"
"""Annotation: every key under which nodes may be held, separated by commas."""
GATE_KEY = "imagegate.dev/gate-created-with"
"""Annotation: the chart's taint key for which the NodeGate was created or found."""
CONFLICTS = 5


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Content of the Lease. A replace must present ``version``, the resourceVersion."""

    holder: str = ""
    duration: int = 15
    renew_time: str = ""
    acquire_time: str = ""
    transitions: int = 0
    version: str = ""
    taint_keys: tuple[str, ...] = ()
    gate_key: str = ""


class Leases:
    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self._client = client
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._namespace = namespace
        self._name = name

    async def get(self) -> LeaseRecord:
        """Raises NotFound if there has never been a leader."""
        return self._parse(await self._client.get(self._path))

    async def create(self, record: LeaseRecord) -> LeaseRecord:
        """Raises AlreadyExists if another process has created it."""
        return self._parse(await self._client.create_unfenced(self._collection, self._body(record)))

    async def replace(self, record: LeaseRecord) -> LeaseRecord:
        """Raises Conflict if the Lease has changed since ``record.version``."""
        return self._parse(await self._client.replace(self._path, self._body(record), fenced=False))

    async def edit(self, change: Callable[[LeaseRecord], LeaseRecord]) -> LeaseRecord:
        """Change the annotations. Writes nothing if nothing changes.

        The elector writes the same object. The later of two writes gets a Conflict and is repeated
        after a read, so that no write is lost.
        """
        for _ in range(CONFLICTS):
            try:
                record = await self.get()
            except NotFound:
                body = self._body(change(LeaseRecord()))
                return self._parse(await self._client.create(self._collection, body))
            wanted = change(record)
            if wanted == record:
                return record
            try:
                return self._parse(await self._client.replace(self._path, self._body(wanted)))
            except Conflict:
                continue
        raise Conflict(f"annotate {self._path}", 409, "it kept changing; it is tried again")

    async def delete(self) -> None:
        try:
            await self._client.delete(self._path)
        except NotFound:
            return

    def _body(self, record: LeaseRecord) -> dict[str, Any]:
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        annotations = {
            TAINT_KEYS: ",".join(record.taint_keys),
            GATE_KEY: record.gate_key,
        }
        if any(annotations.values()):
            metadata["annotations"] = {key: value for key, value in annotations.items() if value}
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
        annotations = metadata.get("annotations") or {}
        return LeaseRecord(
            holder=spec.get("holderIdentity") or "",
            duration=int(spec.get("leaseDurationSeconds") or 15),
            renew_time=spec.get("renewTime") or "",
            acquire_time=spec.get("acquireTime") or "",
            transitions=int(spec.get("leaseTransitions") or 0),
            version=metadata.get("resourceVersion", ""),
            taint_keys=tuple(filter(None, annotations.get(TAINT_KEYS, "").split(","))),
            gate_key=annotations.get(GATE_KEY, ""),
        )
