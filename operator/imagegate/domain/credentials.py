"""Nodes on which an image that was pulled with a secret can be used without that secret.

Since 1.35 the kubelet remembers with which credentials an image was pulled, and asks a pod without
them to show that it may pull the image (feature gate KubeletEnsureSecretPulledImages, KEP-2535; off
by default in 1.33 and 1.34). An older kubelet starts any pod with any image that the node has.
"""

from __future__ import annotations

from typing import Final

from imagegate.domain.facts import Node, Prefetch

VERIFIES: Final = (1, 35)
"""The first version of the kubelet (major, minor) that verifies credentials by default."""


def exposed(prefetch: Prefetch, node: Node) -> bool:
    """Whether the prefetch pulls images with secrets onto a node that lets every pod use them."""
    return prefetch.private and (0, 0) < node.kubelet < VERIFIES


def condition(nodes: int) -> tuple[str, bool, str, str]:
    """The condition for this number of exposed nodes: (type, status, reason, message)."""
    return (
        "CredentialsVerified",
        False,
        "KubeletTooOld",
        f"images that are pulled with secrets can be used without them by any pod on {nodes} nodes:"
        " kubelets older than 1.35 do not verify credentials by default; upgrade them, turn on"
        " their feature gate KubeletEnsureSecretPulledImages, or leave these nodes out by"
        " spec.nodeSelector",
    )
