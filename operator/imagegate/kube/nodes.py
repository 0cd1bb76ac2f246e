"""Nodes: read into facts, and changed by one JSON patch at a time.

``spec.taints`` is an atomic list, so server-side apply and merge patches would overwrite what
others put there. A JSON patch that tests what was seen changes our own entry and nothing else,
or fails as a whole (kubernetes#131231 is what happens without).
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from imagegate.api import fields
from imagegate.domain.actions import PatchNode
from imagegate.domain.facts import OBSERVED, Listed, Node, Taint
from imagegate.kube.client import JSON_PATCH, Client
from imagegate.kube.errors import Conflict, NotFound

logger = logging.getLogger(__name__)

PATH = "/api/v1/nodes"
CONFLICTS = 10
PARALLEL = 32

NAMES_LISTED = 5
"""Names that the kubelet lists for one image at most (MaxNamesPerImageInNodeStatus)."""

Operation = dict[str, Any]

_VERSION = re.compile(r"v?(\d+)\.(\d+)")


async def try_each(nodes: Iterable[Node], change: Callable[[Node], Awaitable[bool]]) -> int:
    """Change nodes, a few at a time; how many of them ``change`` says it did.

    Every node is tried: one that is refused must not leave the others held. Raises the first error,
    after the last node.
    """
    limit = asyncio.Semaphore(PARALLEL)

    async def one(node: Node) -> bool:
        async with limit:
            return await change(node)

    results = await asyncio.gather(*map(one, nodes), return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    if failed:
        logger.error("nodes not changed", extra={"count": len(failed)})
        raise failed[0]
    return sum(map(bool, results))


def parse(body: Mapping[str, Any], wanted: frozenset[str] = frozenset()) -> Node:
    """A Node from its JSON form, kubelet-sized (15 KB) to fact-sized.

    Of the images that it lists only the names in ``wanted`` are kept.
    """
    metadata: Mapping[str, Any] = body.get("metadata") or {}
    spec: Mapping[str, Any] = body.get("spec") or {}
    status: Mapping[str, Any] = body.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    ready: Mapping[str, Any] = conditions.get("Ready") or {}
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    info: Mapping[str, str] = status.get("nodeInfo") or {}
    images = status.get("images") or ()
    endpoint = (status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}
    addresses = {a.get("type"): a.get("address", "") for a in status.get("addresses") or ()}
    runtime, _, runtime_version = info.get("containerRuntimeVersion", "").partition("://")
    return Node(
        name=metadata.get("name", ""),
        uid=metadata.get("uid", ""),
        version=fields.version(metadata),
        labels=dict(metadata.get("labels") or {}),
        annotated=bool(annotations),
        taints=tuple(_taint(taint) for taint in spec.get("taints") or ()),
        observed=annotations.get(OBSERVED, ""),
        boot_id=info.get("bootID", ""),
        kubelet=_version(info.get("kubeletVersion", "")),
        runtime=(runtime, *_version(runtime_version)),
        created_at=fields.seconds(metadata.get("creationTimestamp")) or 0.0,
        ready=ready.get("status") == "True",
        ready_since=fields.seconds(ready.get("lastTransitionTime")),
        disk_pressure=(conditions.get("DiskPressure") or {}).get("status") == "True",
        unschedulable=bool(spec.get("unschedulable")),
        deleting="deletionTimestamp" in metadata,
        platform=_platform(info),
        address=addresses.get("InternalIP", ""),
        kubelet_port=endpoint.get("Port") or 10250,
        capacity=fields.quantity((status.get("capacity") or {}).get("ephemeral-storage")),
        # Interned: the same few names for thousands of nodes.
        listed={
            sys.intern(name): _listed(i)
            for i in images
            for name in i.get("names") or ()
            if name in wanted
        },
        wanted=wanted,
        tags=_tags(images, wanted),
        smallest_listed=min((i.get("sizeBytes", 0) for i in images), default=None),
        cut_off=tuple(_listed(i) for i in images if len(i.get("names") or ()) >= NAMES_LISTED),
    )


def _listed(image: Mapping[str, Any]) -> Listed:
    names = image.get("names") or ()
    digests = frozenset(sys.intern(each.partition("@")[2]) for each in names if "@" in each)
    return Listed(image.get("sizeBytes", 0), digests)


def _tags(images: Sequence[Mapping[str, Any]], wanted: frozenset[str]) -> dict[str, frozenset[str]]:
    """The wanted tags, each with the digests of the image that has it. The kubelet lists digests
    before tags and five names at most: where a tag is seen, no digest was cut off.
    """
    return {
        name: frozenset(each.partition("@")[2] for each in names if "@" in each)
        for image in images
        for names in [image.get("names") or ()]
        for name in names
        if "@" not in name and name in wanted
    }


def _platform(info: Mapping[str, str]) -> str:
    os, architecture = info.get("operatingSystem", ""), info.get("architecture", "")
    # Interned: a few different ones for thousands of nodes.
    return sys.intern(f"{os}/{architecture}") if os and architecture else ""


def _version(text: str) -> tuple[int, int]:
    """Major and minor of ``v1.34.4-eks-1a2b3c4``, ``2.1.4-k3s1``; zeros of anything else."""
    found = _VERSION.match(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _taint(body: Mapping[str, Any]) -> Taint:
    return Taint(
        key=body.get("key", ""),
        effect=body.get("effect", ""),
        value=body.get("value"),
        time_added=body.get("timeAdded"),
    )


def _wire(taint: Taint) -> dict[str, str]:
    entry = {"key": taint.key, "effect": taint.effect}
    if taint.value is not None:
        entry["value"] = taint.value
    if taint.time_added is not None:
        entry["timeAdded"] = taint.time_added
    return entry


def operations(patch: PatchNode) -> list[Operation]:
    """The JSON patch (RFC 6902) for one change; golden files in ``tests/unit/kube``."""
    node = patch.node
    ops: list[Operation] = [{"op": "test", "path": "/metadata/uid", "value": node.uid}]
    # From the last one on, because a removal moves what stands behind it.
    for index in sorted(map(node.taints.index, patch.remove), reverse=True):
        path = f"/spec/taints/{index}"
        # The index alone would remove whatever stands there by now.
        ops.append({"op": "test", "path": path, "value": _wire(node.taints[index])})
        ops.append({"op": "remove", "path": path})
    if patch.add is not None:
        ops.extend(_added(node, patch.add))
    no_labels = bool(patch.set_labels) and not node.labels
    no_annotations = patch.observed is not None and not node.annotated
    if no_labels or no_annotations:
        # "add" replaces a map that exists by now (RFC 6902, section 4.1), so the Node must still
        # be the version in which the map was absent.
        ops.append({"op": "test", "path": "/metadata/resourceVersion", "value": str(node.version)})
    if no_labels:
        ops.append({"op": "add", "path": "/metadata/labels", "value": {}})
    for key in patch.drop_labels:
        path = f"/metadata/labels/{_escape(key)}"
        ops.append({"op": "test", "path": path, "value": node.labels[key]})
        ops.append({"op": "remove", "path": path})
    for key, value in sorted(patch.set_labels.items()):
        ops.append({"op": "add", "path": f"/metadata/labels/{_escape(key)}", "value": value})
    if patch.observed is not None:
        if no_annotations:
            ops.append({"op": "add", "path": "/metadata/annotations", "value": {}})
        ops.append(
            {
                "op": "add",
                "path": f"/metadata/annotations/{_escape(OBSERVED)}",
                "value": patch.observed,
            }
        )
    if patch.forget:
        ops.append({"op": "remove", "path": f"/metadata/annotations/{_escape(OBSERVED)}"})
    return ops


def _added(node: Node, taint: Taint) -> Sequence[Operation]:
    if node.taints:
        seen = [_wire(t) for t in node.taints]
        return (
            {"op": "test", "path": "/spec/taints", "value": seen},
            {"op": "add", "path": "/spec/taints/-", "value": _wire(taint)},
        )
    return (
        {"op": "test", "path": "/metadata/resourceVersion", "value": str(node.version)},
        {"op": "add", "path": "/spec/taints", "value": [_wire(taint)]},
    )


def _escape(key: str) -> str:
    """A key as a JSON pointer's segment (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


class Nodes:
    """``wanted`` gives the names of the images that matter if a node lists them."""

    def __init__(self, client: Client, wanted: Callable[[], frozenset[str]] = frozenset) -> None:
        self._client = client
        self._wanted = wanted

    def parse(self, body: Mapping[str, Any]) -> Node:
        return parse(body, self._wanted())

    async def list(self) -> list[Node]:
        return [self.parse(body) async for body in self._client.list_all(PATH)]

    async def get(self, name: str) -> Node:
        return self.parse(await self._client.get(f"{PATH}/{name}"))

    async def apply(self, patch: PatchNode) -> Node:
        """The Node as it is afterwards. Raises Conflict when it was not as ``patch`` saw it."""
        body = await self._client.patch(f"{PATH}/{patch.node.name}", operations(patch), JSON_PATCH)
        return self.parse(body)

    async def insist(self, node: Node, wanted: Callable[[Node], PatchNode]) -> bool:
        """Apply what is ``wanted`` of a node, as it is and as it then turns out to be. Whether
        there was anything to do; nothing is wanted of one that is gone. Raises Conflict when it
        keeps changing.
        """
        for _ in range(CONFLICTS):
            patch = wanted(node)
            if patch.empty:
                return False
            try:
                await self.apply(patch)
            except Conflict:
                node = await self.get(node.name)
                continue
            except NotFound:
                return False
            return True
        raise Conflict(f"patch node {node.name}", 409, "it kept changing; try again")
