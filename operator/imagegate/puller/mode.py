"""Chooses the kind of puller pod for a node."""

from __future__ import annotations

from enum import StrEnum

from imagegate.domain.facts import Node

KUBELET = (1, 35)
"""The first version with the feature gate ImageVolume on by default (off in 1.33 and 1.34)."""
RUNTIMES = {"containerd": (2, 1), "cri-o": (1, 31)}
"""The first versions that mount images. An older containerd treats the mount as a bind mount
without a source, and the pod would hang. Other runtimes get Container, which works with all."""


class Mode(StrEnum):
    AUTO = "Auto"
    """Chosen per node: ImageVolume if its versions are known to support it, else Container."""
    IMAGE_VOLUME = "ImageVolume"
    """The images are mounted; no process runs in them."""
    CONTAINER = "Container"
    """A container of each image runs ``true`` of a busybox that the operator brings."""


def choose(node: Node, wanted: Mode) -> Mode:
    """Returns IMAGE_VOLUME or CONTAINER, never AUTO."""
    if wanted is not Mode.AUTO:
        return wanted
    name, *version = node.runtime
    mounts = name in RUNTIMES and tuple(version) >= RUNTIMES[name]
    return Mode.IMAGE_VOLUME if mounts and node.kubelet >= KUBELET else Mode.CONTAINER
