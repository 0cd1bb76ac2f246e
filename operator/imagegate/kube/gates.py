"""Access to the NodeGate: reads it, creates it once, and writes its heartbeat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagegate.api import fields
from imagegate.domain.facts import Gate
from imagegate.kube.client import MERGE_PATCH, Client
from imagegate.kube.errors import AlreadyExists, NotFound

PATH = "/apis/imagegate.dev/v1alpha1/nodegates"
NAME = "default"


def parse(body: Mapping[str, Any]) -> Gate:
    metadata: Mapping[str, Any] = body.get("metadata") or {}
    spec: Mapping[str, Any] = body.get("spec") or {}
    return Gate(
        uid=metadata.get("uid", ""),
        version=fields.version(metadata),
        taint_key=spec.get("taintKey", ""),
        suspend=bool(spec.get("suspend")),
        silence=float(spec.get("silenceSeconds", 300)),
        deleting="deletionTimestamp" in metadata,
        status=dict(body.get("status") or {}),
        created=metadata.get("creationTimestamp", ""),
    )


class Gates:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def get(self) -> Gate | None:
        try:
            return parse(await self._client.get(f"{PATH}/{NAME}"))
        except NotFound:
            return None

    async def create(self, *, taint_key: str, suspend: bool, silence_seconds: int) -> Gate:
        """Create the NodeGate with these values, or return the NodeGate that already exists."""
        body = {
            "apiVersion": "imagegate.dev/v1alpha1",
            "kind": "NodeGate",
            "metadata": {"name": NAME},
            "spec": {
                "taintKey": taint_key,
                "suspend": suspend,
                "silenceSeconds": silence_seconds,
            },
        }
        try:
            return parse(await self._client.create(PATH, body))
        except AlreadyExists:
            return parse(await self._client.get(f"{PATH}/{NAME}"))

    async def write_status(self, gate: Gate, status: Mapping[str, Any]) -> Gate:
        """Apply a merge patch to the status of this NodeGate. Raises NotFound if it was deleted,
        and Conflict if a new NodeGate has replaced it, because a heartbeat must not arm a gate
        whose taint key is not recorded.
        """
        body = {"metadata": {"uid": gate.uid}, "status": status}
        return parse(await self._client.patch(f"{PATH}/{NAME}/status", body, MERGE_PATCH))

    async def policy_exists(self, name: str) -> bool:
        """Whether the policy that taints joining nodes is installed, in either version."""
        for version in ("v1", "v1beta1"):
            path = f"/apis/admissionregistration.k8s.io/{version}/mutatingadmissionpolicies/{name}"
            try:
                await self._client.get(path)
            except NotFound:
                continue
            return True
        return False
