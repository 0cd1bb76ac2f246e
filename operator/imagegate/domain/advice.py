"""Advice about images that are slow to pull: the cause and the remedy (`imagegate lint`, status).

A node fetches a few layers at a time, each over one connection, and unpacks them one after the
other, each on one core. So the sizes of the single layers matter more than the size of the image.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imagegate.domain import disk, forecast
from imagegate.domain.facts import ImageFacts, ImageSize, LayerFacts
from imagegate.domain.forecast import ORDINARY, Rates
from imagegate.domain.thresholds import (
    DISK_NEED,
    DOMINANCE_FROM,
    DOMINATING_LAYER,
    GZIP,
    LARGE_LAYER,
    MANY_LAYERS,
    MISSING_PLATFORM,
    MUTABLE_TAG,
    SLOW_PULL,
    UNCOMPRESSED,
    Severity,
)

MAX_ADVICE = 8
"""The most that `status.images[].advice` may have."""
MAX_TEXT = 1024
"""Characters of one advice in the status (`meta.Sentence`)."""
DISK = 100 * 10**9
"""Bytes of a node's disk if no size is given: GKE's default."""
STREAMS = 3
"""Layers that a node fetches at once: containerd's `max_concurrent_downloads`."""
FASTER = 3
"""How much faster one core unpacks zstd and uncompressed layers than gzip: containerd's own
benchmark has 2 to 3.7 (containerd PR 6957), published images less."""
SHOWN = 5
"""Platforms that a message names."""


@dataclass(frozen=True, slots=True)
class Advice:
    rule: str
    severity: Severity
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.why}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class NodeKind:
    """The nodes that an image is judged for."""

    platform: str = ""
    """Empty: the platform with the largest image."""
    disk_size: int = 0
    """Bytes; 0: the rule about the disk is left out."""
    rates: Rates = ORDINARY


ANY: Final = NodeKind()


def advise(reference: str, facts: ImageFacts, nodes: NodeKind = ANY) -> tuple[Advice, ...]:
    """The advice about an image, errors first; at most `MAX_ADVICE`. The same facts give the same
    advice. `reference` as the user wrote it. Never raises.
    """
    platform = nodes.platform
    size = facts.sizes.get(platform) if platform else facts.largest
    found: list[Advice] = []
    if platform in facts.missing:
        found.append(_missing(facts, platform))
    if size is not None:
        found += _of_layers(size)
        found += _of_whole(size, nodes)
    if facts.digest and "@" not in reference:
        found.append(_mutable(facts))
    found.sort(key=lambda advice: advice.severity is not Severity.ERROR)
    return tuple(found[:MAX_ADVICE])


def seconds(size: ImageSize, rates: Rates) -> float:
    """Estimated seconds of one pull on an idle node: it fetches `STREAMS` layers at a time and
    unpacks the layers in order.

    The layers in flight share the bandwidth. A registry that limits each connection is slower.
    """
    layers = size.layers or (LayerFacts(size.compressed),)
    done = 0.0
    for layer, fetched in zip(layers, _fetched(layers, rates.node), strict=True):
        speed = rates.unpack * (1 if layer.compression == "gzip" else FASTER)
        done = max(done, fetched) + layer.size / speed
    return done


def _fetched(layers: tuple[LayerFacts, ...], rate: float) -> list[float]:
    """When each layer is complete, in seconds. `sent`: bytes that each of the parallel streams has
    received since the start.
    """
    ends = [0.0] * len(layers)
    flying: list[tuple[float, int]] = []
    now = sent = 0.0

    def land() -> None:
        nonlocal now, sent
        share = rate / len(flying)
        end, index = heapq.heappop(flying)
        now += (end - sent) / share
        sent = end
        ends[index] = now

    for index, layer in enumerate(layers):
        if len(flying) == STREAMS:
            land()
        heapq.heappush(flying, (sent + layer.size, index))
    while flying:
        land()
    return ends


def _of_layers(size: ImageSize) -> Iterator[Advice]:
    layers = size.layers
    if not layers:
        return
    number, largest = max(enumerate(layers, 1), key=lambda item: item[1].size)
    name = f"layer {number} of {len(layers)}"
    severity = LARGE_LAYER.severity(largest.size)
    if severity is not None:
        yield Advice(
            LARGE_LAYER.name,
            severity,
            f"{name} has {disk.size(largest.size)}, and one layer comes over one connection and is"
            " unpacked by one core",
            "split it into layers of 256 MiB to 1 GiB, by what changes together",
        )
    share = largest.size / max(1, size.compressed)
    severity = DOMINATING_LAYER.severity(share)
    if severity is not None and size.compressed >= DOMINANCE_FROM:
        yield Advice(
            DOMINATING_LAYER.name,
            severity,
            f"{name} is {100 * share:.0f} % of {disk.size(size.compressed)}: for most of the pull"
            " no other layer is in progress",
            "split this layer; more layers elsewhere do not help",
        )
    gzip = sum(layer.size for layer in layers if layer.compression == "gzip")
    severity = GZIP.severity(gzip)
    if severity is not None:
        yield Advice(
            GZIP.name,
            severity,
            f"{disk.size(gzip)} of it are gzip, the slowest to unpack",
            "build it with zstd: docker buildx build --output type=registry,compression=zstd,"
            "force-compression=true,oci-mediatypes=true",
        )
    plain = sum(layer.size for layer in layers if layer.compression == "none")
    severity = UNCOMPRESSED.severity(plain)
    if severity is not None:
        yield Advice(
            UNCOMPRESSED.name,
            severity,
            f"{disk.size(plain)} of it are sent as they are",
            "compress these layers with zstd, unless they do not shrink (model weights)",
        )
    severity = MANY_LAYERS.severity(len(layers))
    if severity is not None:
        yield Advice(
            MANY_LAYERS.name,
            severity,
            f"it has {len(layers)} layers; each is mounted, and Docker stops at 125",
            "join RUN and COPY steps, or start from a base image with fewer layers",
        )


def _of_whole(size: ImageSize, nodes: NodeKind) -> Iterator[Advice]:
    disk_size, rates = nodes.disk_size, nodes.rates
    estimate = seconds(size, rates)
    severity = SLOW_PULL.severity(estimate)
    if severity is not None:
        yield Advice(
            SLOW_PULL.name,
            severity,
            f"a node takes about {forecast.duration(estimate)} for it (an estimate, at"
            f" {rates.node / 1e6:g} MB/s and with {rates.unpack / 1e6:g} MB/s of gzip unpacked)",
            "make it smaller, split it in another way, or raise gate.timeoutSeconds: a joining node"
            " is released after that time, with or without the image",
        )
    need = disk.need([size])
    severity = DISK_NEED.severity(need / disk_size) if disk_size > 0 else None
    if severity is not None:
        yield Advice(
            DISK_NEED.name,
            severity,
            f"it takes about {disk.size(need)} on a node (an estimate):"
            f" {100 * need / disk_size:.0f} % of a disk of {disk.size(disk_size)}",
            "make it smaller, or give the nodes larger disks",
        )


def _missing(facts: ImageFacts, platform: str) -> Advice:
    shown = ", ".join(each[:60] for each in facts.platforms[:SHOWN])
    more = f" and {len(facts.platforms) - SHOWN} more" if len(facts.platforms) > SHOWN else ""
    return Advice(
        MISSING_PLATFORM.name,
        Severity.ERROR,
        f"it is not there for {platform[:60]}" + (f", only for {shown}{more}" if shown else ""),
        "build it for this platform as well, or keep such nodes out of spec.nodeSelector",
    )


def _mutable(facts: ImageFacts) -> Advice:
    return Advice(
        MUTABLE_TAG.name,
        Severity.WARNING,
        "its tag may move to another image, and nodes that pull later get that image",
        f"write @{facts.digest[:160]} after it",
    )
