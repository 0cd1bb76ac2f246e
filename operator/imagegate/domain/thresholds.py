"""The rules of `advice`: the values from which an image is reported as slow to pull."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GIB = 2**30


class Severity(StrEnum):
    WARNING = "warning"
    ERROR = "error"


class Unit(StrEnum):
    """The unit of a threshold."""

    BYTES = "bytes"
    SHARE = "share"
    LAYERS = "layers"
    SECONDS = "seconds"
    ALWAYS = "always"
    """No threshold: the rule applies, or it does not."""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    unit: Unit
    warning: float | None
    """A warning from this value on; None: never."""
    error: float | None
    source: str

    def severity(self, value: float) -> Severity | None:
        if self.error is not None and value >= self.error:
            return Severity.ERROR
        if self.warning is not None and value >= self.warning:
            return Severity.WARNING
        return None


LARGE_LAYER = Rule(
    "large-layer",
    Unit.BYTES,
    1 * GIB,
    4 * GIB,
    "a layer is hashed and unpacked by one thread (containerd#13559: 2.7 GiB take 30 to 70 s);"
    " Artifact Registry sends 9.9 GB in one request at most",
)
DOMINATING_LAYER = Rule(
    "dominating-layer",
    Unit.SHARE,
    0.40,
    0.70,
    "nothing overlaps with it; buildkit#6358: 10.3 GB in many layers instead of a few large ones,"
    " 54 s became 15 s",
)
GZIP = Rule(
    "gzip",
    Unit.BYTES,
    1 * GIB,
    None,
    "one core unpacks 83 to 121 MiB/s of gzip (containerd PR 13560), of zstd 2 to 3.7 times as"
    " much (containerd PR 6957)",
)
UNCOMPRESSED = Rule(
    "uncompressed",
    Unit.BYTES,
    1 * GIB,
    None,
    "published images shrink to 35 to 53 % when they are compressed",
)
MANY_LAYERS = Rule(
    "many-layers",
    Unit.LAYERS,
    80,
    120,
    "Docker takes 125 (`maxLayerDepth` in moby), other tools 127; a mount for each to unpack it",
)
SLOW_PULL = Rule(
    "slow-pull",
    Unit.SECONDS,
    300,
    600,
    "`gate.timeoutSeconds` is 600 by default: after that a joining node is released",
)
DISK_NEED = Rule(
    "disk-need",
    Unit.SHARE,
    0.50,
    0.75,
    "`disk.maxUsagePercent` is 75 by default; the kubelet removes images from 85 % on",
)
MISSING_PLATFORM = Rule("missing-platform", Unit.ALWAYS, None, 0, "the image's index")
MUTABLE_TAG = Rule("mutable-tag", Unit.ALWAYS, 0, None, "a tag may be pushed again")

RULES = (
    LARGE_LAYER,
    DOMINATING_LAYER,
    GZIP,
    UNCOMPRESSED,
    MANY_LAYERS,
    SLOW_PULL,
    DISK_NEED,
    MISSING_PLATFORM,
    MUTABLE_TAG,
)
"""All thresholds; `docs/images.md` shows this table, and a test compares both."""
DOMINANCE_FROM = 2 * GIB
"""Compressed bytes from which a dominating layer matters: a smaller image is pulled fast anyway."""
