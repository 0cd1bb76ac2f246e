"""Reads whether a DaemonSet's pod is Ready on a node, only while a pull waits for that pod.

A watch would be too expensive, because such DaemonSets have many pods and each matters only for
seconds. The API server serves a list by ``spec.nodeName`` from its index of pods by node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from imagegate.domain.facts import DaemonSetRef
from imagegate.kube.client import Client
from imagegate.kube.errors import Forbidden, KubeError, NotFound

MAX_ERROR = 200


class DaemonSets:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def unready(self, node: str, refs: Collection[DaemonSetRef]) -> dict[DaemonSetRef, str]:
        """The DaemonSets that are not Ready on the node, with reasons. Errors become reasons."""
        reasons: dict[DaemonSetRef, str] = {}
        for namespace in sorted({ref.namespace for ref in refs}):
            here = sorted(ref.name for ref in refs if ref.namespace == namespace)
            try:
                found = await self._unready_in(namespace, node, here)
            except Forbidden:
                found = dict.fromkeys(here, _not_allowed(namespace))
            except KubeError as error:
                found = dict.fromkeys(here, f"not known: {str(error)[:MAX_ERROR]}")
            reasons |= {DaemonSetRef(namespace, name): why for name, why in found.items()}
        return reasons

    async def _unready_in(self, namespace: str, node: str, names: list[str]) -> dict[str, str]:
        path = f"/api/v1/namespaces/{namespace}/pods"
        selector = f"spec.nodeName={node}"
        pods = [pod async for pod in self._client.list_all(path, fieldSelector=selector)]
        reasons: dict[str, str] = {}
        for name in names:
            own = [pod for pod in pods if _controller(pod) == name]
            if any(_ready(pod) for pod in own):
                continue
            if own:
                reasons[name] = f"its pod {own[0]['metadata']['name']} is not Ready"
            elif await self._exists(namespace, name):
                reasons[name] = "it has no pod there: does it tolerate the taints?"
            else:
                reasons[name] = "it does not exist"
        return reasons

    async def _exists(self, namespace: str, name: str) -> bool:
        try:
            await self._client.get(f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}")
        except NotFound:
            return False
        return True


def _not_allowed(namespace: str) -> str:
    return (
        f"the operator may not look into namespace {namespace}:"
        " add it to the chart's startAfter.namespaces"
    )


def _controller(pod: Mapping[str, Any]) -> str | None:
    """The name of the DaemonSet that controls the pod."""
    for owner in pod["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == "DaemonSet":
            group = str(owner.get("apiVersion", "")).partition("/")[0]
            return str(owner.get("name")) if group == "apps" else None
    return None


def _ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in conditions
    )
