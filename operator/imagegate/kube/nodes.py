"""Access to Nodes: reads them into facts, and writes each change as one JSON patch.

``spec.taints`` is an atomic list, so server-side apply and merge patches would overwrite the taints
of other clients. A JSON patch with tests of the last known content changes only our own taint, or
fails as a whole (kubernetes#131231 shows the result without tests).
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
"""Largest number of names that the kubelet lists for one image (MaxNamesPerImageInNodeStatus)."""

Operation = dict[str, Any]

_VERSION = re.compile(r"v?(\d+)\.(\d+)")


async def try_each(nodes: Iterable[Node], change: Callable[[Node], Awaitable[bool]]) -> int:
    """Change nodes, a few at a time. Returns for how many nodes ``change`` returned True.

    All nodes are tried, because the failure for one node must not leave the others held. Raises the
    first error after the last node.
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
    """The facts about a Node from its JSON form, which has about 15 KB.

    Of the listed images, only the names in ``wanted`` are kept.
    """
    metadata: Mapping[str, Any] = body.get("metadata") or {}
    spec: Mapping[str, Any] = body.get("spec") or {}
    status: Mapping[str, Any] = body.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    ready: Mapping[str, Any] = conditions.get("Ready") or {}
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    info: Mapping[str, str] = status.get("nodeInfo") or {}
    images = _images(status.get("images") or (), wanted)
    endpoint = (status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}
    addresses = {a.get("type"): a.get("address", "") for a in status.get("addresses") or ()}
    runtime, _, runtime_version = info.get("containerRuntimeVersion", "").partition("://")
    return Node(
        name=metadata.get("name", ""),
        uid=metadata.get("uid", ""),
        version=fields.version(metadata),
        # Interned, because thousands of nodes have the same labels.
        labels={
            sys.intern(key): sys.intern(value)
            for key, value in (metadata.get("labels") or {}).items()
        },
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
        wanted=wanted,
        listed=images.listed,
        tags=images.tags,
        smallest_listed=images.smallest,
        cut_off=tuple(images.cut_off),
    )


@dataclass(slots=True)
class _Images:
    """The facts about ``status.images``."""

    listed: dict[str, Listed] = field(default_factory=dict)
    tags: dict[str, frozenset[str]] = field(default_factory=dict)
    """The wanted tags, each with the digests of its image. If a tag is listed, all digests of the
    image are listed, because the kubelet lists digests before tags, and five names at most."""
    smallest: int | None = None
    cut_off: list[Listed] = field(default_factory=list)


def _images(images: Iterable[Mapping[str, Any]], wanted: frozenset[str]) -> _Images:
    """One pass, because every update of a Node comes with 50 images, and few or none are wanted."""
    facts = _Images()
    for image in images:
        names, size = image.get("names") or (), image.get("sizeBytes", 0)
        if facts.smallest is None or size < facts.smallest:
            facts.smallest = size
        if len(names) >= NAMES_LISTED:
            facts.cut_off.append(_listed(image))
        if wanted.isdisjoint(names):
            continue
        for name in names:
            if name in wanted:
                # Interned, because thousands of nodes list the same few names.
                facts.listed[sys.intern(name)] = _listed(image)
                if "@" not in name:
                    facts.tags[name] = frozenset(
                        each.partition("@")[2] for each in names if "@" in each
                    )
    return facts


def _listed(image: Mapping[str, Any]) -> Listed:
    names = image.get("names") or ()
    digests = frozenset(sys.intern(each.partition("@")[2]) for each in names if "@" in each)
    return Listed(image.get("sizeBytes", 0), digests)


def _platform(info: Mapping[str, str]) -> str:
    os, architecture = info.get("operatingSystem", ""), info.get("architecture", "")
    # Interned, because thousands of nodes have the same few platforms.
    return sys.intern(f"{os}/{architecture}") if os and architecture else ""


def _version(text: str) -> tuple[int, int]:
    """Major and minor of ``v1.34.4-eks-1a2b3c4``, ``2.1.4-k3s1``; (0, 0) for any other text."""
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
    # Remove the last taint first, because a removal moves all later entries.
    for index in sorted(map(node.taints.index, patch.remove), reverse=True):
        path = f"/spec/taints/{index}"
        # Test the entry, because another taint may have this index by now.
        ops.append({"op": "test", "path": path, "value": _wire(node.taints[index])})
        ops.append({"op": "remove", "path": path})
    if patch.add is not None:
        ops.extend(_added(node, patch.add))
    no_labels = bool(patch.set_labels) and not node.labels
    no_annotations = patch.observed is not None and not node.annotated
    if no_labels or no_annotations:
        # "add" would replace a map that was added meanwhile (RFC 6902, section 4.1), so the Node
        # must still have the version in which the map was absent.
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
    """``wanted`` returns the image names that are kept if a node lists them."""

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
        """Apply a patch; returns the changed Node. Raises Conflict if the Node has changed."""
        path = f"{PATH}/{patch.node.name}"
        urgent = patch.release is not None
        body = await self._client.patch(path, operations(patch), JSON_PATCH, urgent=urgent)
        return self.parse(body)

    async def insist(self, node: Node, wanted: Callable[[Node], PatchNode]) -> bool:
        """Apply the patch that ``wanted`` returns for the node. After a conflict, read the node and
        try again. Returns whether a patch was applied; False if the node was deleted. Raises
        Conflict if the node keeps changing.
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
