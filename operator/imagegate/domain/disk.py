"""Whether an image still fits on a node's image file system (section 2, ``disk``).

The kubelet removes images from 85 % on, and evicts pods at the same point (its settings
``imageGCHighThresholdPercent`` and ``imagefs.available<15%``): the images of a pull beyond that are
removed immediately, together with images of other users.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imagegate.domain.facts import ImageSize, Node

UNPACKED = 2.5
"""Unpacked bytes on disk for each compressed byte: gzip layers of published images unpack to 1.9 to
2.9 times their size. The compressed byte itself is added, because containerd keeps the compressed
layers as well."""


@dataclass(frozen=True, slots=True)
class Usage:
    """A node's image file system as its kubelet measured it. ``problem`` says why it could not be
    read, with the remedy.
    """

    capacity: int = 0
    used: int = 0
    problem: str = ""
    passing: bool = False
    """Whether the problem may soon be over without help."""

    def __str__(self) -> str:
        if self.problem:
            return f"its disk usage is not known ({self.problem})"
        percent = 100 * self.used / max(1, self.capacity)
        return (
            f"its image file system holds {size(self.used)} of {size(self.capacity)}"
            f" ({percent:.0f} %)"
        )


NOT_READ = Usage(
    problem="it is read by the operator alone, unless the chart's kubelet.readDiskUsage is off"
)
"""No kubelet is asked."""

Key = int | str
"""A layer, by its digest (`LayerFacts.key`); or the part of an image whose layers are not known, by
the name of the image."""


def parts(images: Iterable[tuple[str, ImageSize | None]]) -> dict[Key, int]:
    """The layers and images that these images consist of, each once, with compressed bytes.
    ``images`` are (name, size); an image of unknown size adds nothing.
    """
    found: dict[Key, int] = {}
    for name, image in images:
        if image is None:
            continue
        layers: dict[Key, int] = {}
        for layer in image.layers:
            if layer.key:
                layers.setdefault(layer.key, layer.size)
        found[name] = max(0, image.compressed - sum(layers.values()))
        found.update(layers)
    return found


def need(images: Iterable[ImageSize]) -> int:
    """Bytes on disk that these images take if they share no layer."""
    return on_disk(sum(image.compressed for image in images))


def on_disk(compressed: int) -> int:
    """Bytes on disk that layers with this number of compressed bytes take."""
    return int(compressed * (1 + UNPACKED))


def refusal(usage: Usage, node: Node, needed: int, limit: int) -> str | None:
    """Why this number of bytes must not be pulled onto the node, with the figures; None: they fit.

    If the usage cannot be read, only the size of the node's disk is checked. (A node with
    DiskPressure is skipped in any case, see `match.skipped`.)
    """
    bound = f"disk.maxUsagePercent is {limit}"
    if usage.problem:
        if not node.capacity or needed <= node.capacity * limit / 100:
            return None
        return (
            f"the images need {size(needed)} unpacked, and the node's disk has"
            f" {size(node.capacity)}; {bound}; {usage}"
        )
    projected = 100 * (usage.used + needed) / max(1, usage.capacity)
    if projected <= limit:
        return None
    return f"the images need {size(needed)} unpacked: {projected:.0f} %; {bound}; {usage}"


def size(count: int) -> str:
    """Bytes for people: ``7.2 GB``, by powers of ten as disks are sold."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
