"""What an ImagePrefetch requests, read from its JSON without the operator's code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]
LABEL = "cached.imagegate.dev/"
PREFETCH = "imagegate.dev/prefetch"
GROUP = "imagegate.dev/group"
OBSERVED = "imagegate.dev/observed"


@dataclass(frozen=True, slots=True)
class Ask:
    name: str
    uid: str
    images: tuple[str, ...]
    selector: tuple[tuple[str, str], ...]
    namespace: str
    gates: bool
    fail_closed: bool
    again: bool
    """Whether nodes are held again after a reboot."""
    timeout: float
    parallel: str
    gate_parallel: str
    paused: bool
    keep: bool
    max_usage: int
    refresh: float | None
    deleting: bool
    dry: bool
    digests: tuple[tuple[str, str], ...] = field(default=())

    def matches(self, node: Body) -> bool:
        labels = node["metadata"].get("labels") or {}
        return all(labels.get(key) == value for key, value in self.selector)

    @property
    def target(self) -> str:
        known = dict(self.digests)
        parts = sorted(f"{i}@{known[i]}" if i in known else i for i in self.images)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    @property
    def references(self) -> frozenset[str]:
        """All names that a node must have: for a followed tag also the name with the digest."""
        pinned = {f"{i.rpartition(':')[0]}@{digest}" for i, digest in self.digests}
        return frozenset(self.images) | pinned

    def bound(self, matching: int, *, joining: bool) -> int:
        return bound(self.gate_parallel if joining else self.parallel, matching)


def bound(text: str, matching: int) -> int:
    if text.endswith("%"):
        return max(1, int(text[:-1]) * matching // 100)
    return max(1, int(text))


def read(body: Body) -> Ask:
    spec, metadata = body["spec"], body["metadata"]
    gate, rollout = spec.get("gate", {}), spec.get("rollout", {})
    refresh = spec.get("refresh", {})
    follows = refresh.get("mode") == "Digest"
    images = tuple(image["image"] for image in spec.get("images", ()))
    listed = (body.get("status") or {}).get("images") or () if follows else ()
    return Ask(
        name=metadata["name"],
        uid=metadata["uid"],
        images=images,
        selector=tuple(sorted((spec.get("nodeSelector") or {}).get("matchLabels", {}).items())),
        namespace=spec.get("pullerNamespace", "imagegate-system"),
        gates=gate.get("mode", "NewNodes") == "NewNodes",
        fail_closed=gate.get("policy") == "FailClosed",
        again=gate.get("onReboot") == "Hold" and gate.get("mode", "NewNodes") == "NewNodes",
        timeout=float(gate.get("timeoutSeconds", 600)),
        parallel=str(rollout.get("maxParallel", "10%")),
        gate_parallel=str(gate.get("maxParallel", "100%")),
        paused=bool(rollout.get("paused")),
        keep=(spec.get("retention") or {}).get("mode", "Keep") == "Keep",
        max_usage=int((spec.get("disk") or {}).get("maxUsagePercent", 75)),
        refresh=float(refresh.get("intervalSeconds", 300)) if follows else None,
        deleting="deletionTimestamp" in metadata,
        dry=bool(spec.get("dryRun")),
        digests=tuple(
            (entry["image"], entry["digest"])
            for entry in listed
            if entry.get("digest") and entry["image"] in images
        ),
    )
