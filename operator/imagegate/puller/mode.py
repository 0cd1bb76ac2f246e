"""Which of the two kinds of puller pod a node gets."""

from __future__ import annotations

from enum import StrEnum

from imagegate.domain.facts import Node

KUBELET = (1, 35)
"""The first with the feature gate ImageVolume on by default (1.33 and 1.34 have it, but off)."""
RUNTIMES = {"containerd": (2, 1), "cri-o": (1, 31)}
"""The first versions that mount images. An old containerd takes the mount for a bind of nothing:
the pod would hang. Of other runtimes nothing is known, and Container works with all."""


class Mode(StrEnum):
    AUTO = "Auto"
    """Per node: image volumes where they surely work, else containers."""
    IMAGE_VOLUME = "ImageVolume"
    """Images are mounted; nothing runs in them."""
    CONTAINER = "Container"
    """A container of each image, in which a busybox of ours does nothing."""


def choose(node: Node, wanted: Mode) -> Mode:
    """ImageVolume or Container."""
    if wanted is not Mode.AUTO:
        return wanted
    name, *version = node.runtime
    mounts = name in RUNTIMES and tuple(version) >= RUNTIMES[name]
    return Mode.IMAGE_VOLUME if mounts and node.kubelet >= KUBELET else Mode.CONTAINER
