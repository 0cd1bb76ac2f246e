"""The classes of failures: the reason, whether it is permanent, and the remedy.

`messages` finds the class of a failed pull; `retry` says when the next attempt is.
"""

from __future__ import annotations

from typing import NamedTuple


class FailureClass(NamedTuple):
    reason: str
    """CamelCase, as in conditions, Events and metrics."""
    permanent: bool
    """Whether the same attempt fails again until a person changes something."""
    remedy: str


# From the messages of container runtimes (`messages`).

DISK_FULL = FailureClass(
    "DiskFull", True, "free or enlarge the node's image file system, or raise disk.maxUsagePercent"
)
"""Reported by the disk guard before a pull, or by the runtime during it. Permanent, because only a
person or the kubelet's image garbage collection, which runs every 5 minutes, frees the disk."""
PULL_QPS_EXCEEDED = FailureClass(
    "PullQPSExceeded", False, "the kubelet limits its own pulls: raise its registryPullQPS"
)
SIGNATURE_INVALID = FailureClass(
    "SignatureInvalid", True, "sign the image, or correct the node's signature policy"
)
VERIFIER_REFUSED = FailureClass(
    "VerifierRefused",
    True,
    "an image verifier of the node's container runtime refuses the image: see its message",
)
THROTTLED = FailureClass(
    "Throttled", False, "the registry limits requests; lower rollout.maxParallel"
)
NAME_RESOLUTION_FAILED = FailureClass(
    "NameResolutionFailed", False, "check the registry's name and the node's DNS"
)
PROXY_REFUSED = FailureClass(
    "ProxyRefused",
    True,
    "the proxy between the node and the registry refuses: correct the HTTPS_PROXY, NO_PROXY and"
    " login of the node's container runtime, or let the proxy allow the registry",
)
PROXY_FAILED = FailureClass(
    "ProxyFailed",
    False,
    "the proxy between the node and the registry does not answer: check it, and the HTTPS_PROXY and"
    " NO_PROXY of the node's container runtime",
)
TLS_FAILED = FailureClass("TLSFailed", False, "check the registry's certificate on the node")
REGISTRY_UNREACHABLE = FailureClass("RegistryUnreachable", False, "check that the registry is up")
PLATFORM_MISSING = FailureClass(
    "PlatformMissing", True, "push the image for the node's os and architecture"
)
REFUSED_BY_POLICY = FailureClass(
    "RefusedByPolicy",
    True,
    "the registry's own policy refuses this image (vulnerabilities, quarantine, a missing"
    " signature): see what the registry says of it",
)
SCHEMA_UNSUPPORTED = FailureClass(
    "SchemaUnsupported",
    True,
    "the image has a manifest of schema 1, which runtimes do not support any more: rebuild"
    " and push it",
)
DECRYPTION_KEY_MISSING = FailureClass(
    "DecryptionKeyMissing", True, "the image is encrypted: give the node the key for it"
)
LAYER_UNSUPPORTED = FailureClass(
    "LayerUnsupported",
    True,
    "the node's container runtime cannot unpack this kind of layer: push the image with"
    " gzip or zstd layers",
)
NOT_A_REGISTRY = FailureClass(
    "NotARegistry",
    False,
    "the server that answers is not a registry (a mirror, a proxy or a login page): check the"
    " node's mirror configuration and the registry's name",
)
NOT_AN_IMAGE = FailureClass(
    "NotAnImage",
    True,
    "this is an artifact (a chart, say) that the node's container runtime cannot unpack:"
    " correct the reference",
)
SHORT_NAME = FailureClass(
    "ShortName",
    True,
    "write the registry's name before the image's: the node's container runtime does not"
    " know where to look for a short name",
)
IMAGE_NEVER_PULLED = FailureClass(
    "ImageNeverPulled",
    True,
    "something has set the puller pod's imagePullPolicy to Never: exempt the puller"
    " namespace from that policy or webhook",
)
NODE_STORE_DAMAGED = FailureClass(
    "NodeStoreDamaged",
    False,
    "the node's image store has lost content, or was collected meanwhile; fetched again. If it goes"
    " on, remove the image on the node (crictl rmi), or replace the node",
)
SNAPSHOTTER_FAILED = FailureClass(
    "SnapshotterFailed",
    False,
    "the node's snapshotter is missing, or something forbids it to unpack: look at containerd's"
    " configuration and at the node's security modules",
)
NODE_DISK_FAILED = FailureClass(
    "NodeDiskFailed", False, "the node's disk is read-only or damaged: replace the node"
)
NODE_LIMIT_REACHED = FailureClass(
    "NodeLimitReached", False, "raise the node's limits of open files, inotify instances or memory"
)
IDS_OUT_OF_RANGE = FailureClass(
    "IdsOutOfRange",
    False,
    "the layer has user or group ids that the node's user namespace lacks: give it more in"
    " /etc/subuid and /etc/subgid, or build the image with smaller ids",
)
UNAUTHORIZED = FailureClass(
    "Unauthorized",
    True,
    "check that the image pull secret exists in the puller namespace (spec.pullerNamespace) and may"
    " read the image",
)
REGISTRY_STORAGE_REFUSED = FailureClass(
    "RegistryStorageRefused",
    False,
    "the store that the registry redirects to refuses, not the registry: check the registry's own"
    " access to it, the clocks, and any proxy between the node and the store",
)
INVALID_IMAGE_NAME = FailureClass("InvalidImageName", True, "correct the image reference")
IMAGE_NOT_FOUND = FailureClass("ImageNotFound", True, "push the image or correct the reference")
REGISTRY_ERROR = FailureClass("RegistryError", False, "the registry failed; it is tried again")
TRANSFER_BROKEN = FailureClass(
    "TransferBroken", False, "the transfer broke off or was damaged; tried again"
)
CONTAINER_NOT_CREATED = FailureClass(
    "ContainerNotCreated",
    False,
    "the node's container runtime can make no container of the image, or of the puller pod: see its"
    " message",
)
TRANSFER_TIMEOUT = FailureClass(
    "TransferTimeout", False, "the registry was too slow; it is tried again"
)
# The operator's own conclusions.

EVICTED_BY_KUBELET = FailureClass(
    "EvictedByKubelet",
    False,
    "the images do not fit on the node together with its other images: enlarge its disk, or leave"
    " the node out",
)
STALE_MIRROR = FailureClass(
    "StaleMirror",
    False,
    "a mirror between the nodes and the registry still serves an earlier image for the tag: make"
    " the mirror resolve the tag again, or shorten the time for which it keeps tags",
)
"""Not a failed pull: the node has the new image, but by its digest only."""
PULLER_FAILED = FailureClass(
    "PullerFailed",
    False,
    "the image of the chart's puller.container.image must have a static /bin/busybox that the"
    " node's architecture runs",
)
PULL_TIMEOUT = FailureClass(
    "PullTimeout", False, "raise retry.timeoutSeconds or look at the network"
)
POD_REJECTED = FailureClass(
    "PodRejected", False, "the node had no room for the puller pod; tried again"
)
POD_REFUSED = FailureClass(
    "PodRefused",
    False,
    "the API server refuses the puller pod: create the namespace of spec.pullerNamespace, allow the"
    " pod in its quota, Pod Security level or policy, or give its containers what a quota or"
    " LimitRange asks for (puller.resources of the chart)",
)
POD_NOT_CREATED = FailureClass(
    "PodNotCreated",
    False,
    "the API server or an admission webhook fails when the puller pod is created: see the message,"
    " and correct or remove the webhook that it names",
)
POD_REMOVED = FailureClass(
    "PodRemoved",
    False,
    "something deletes puller pods before they are done: the audit log says what (preemption by the"
    " scheduler, a descheduler, a clean-up policy)",
)
IMAGE_VOLUMES_DROPPED = FailureClass(
    "ImageVolumesDropped",
    False,
    "an API server of the cluster has no image volumes: set the chart's puller.mode to Container",
)
PULL_FAILED = FailureClass("PullFailed", False, "see the message of the container runtime")

CLASSES: tuple[FailureClass, ...] = (
    DISK_FULL,
    PULL_QPS_EXCEEDED,
    SIGNATURE_INVALID,
    VERIFIER_REFUSED,
    THROTTLED,
    NAME_RESOLUTION_FAILED,
    PROXY_REFUSED,
    PROXY_FAILED,
    TLS_FAILED,
    REGISTRY_UNREACHABLE,
    PLATFORM_MISSING,
    REFUSED_BY_POLICY,
    SCHEMA_UNSUPPORTED,
    DECRYPTION_KEY_MISSING,
    LAYER_UNSUPPORTED,
    NOT_A_REGISTRY,
    NOT_AN_IMAGE,
    SHORT_NAME,
    IMAGE_NEVER_PULLED,
    NODE_STORE_DAMAGED,
    SNAPSHOTTER_FAILED,
    NODE_DISK_FAILED,
    NODE_LIMIT_REACHED,
    IDS_OUT_OF_RANGE,
    UNAUTHORIZED,
    REGISTRY_STORAGE_REFUSED,
    INVALID_IMAGE_NAME,
    IMAGE_NOT_FOUND,
    REGISTRY_ERROR,
    TRANSFER_BROKEN,
    CONTAINER_NOT_CREATED,
    TRANSFER_TIMEOUT,
    EVICTED_BY_KUBELET,
    STALE_MIRROR,
    PULLER_FAILED,
    PULL_TIMEOUT,
    POD_REJECTED,
    POD_REFUSED,
    POD_NOT_CREATED,
    POD_REMOVED,
    IMAGE_VOLUMES_DROPPED,
    PULL_FAILED,
)
"""All classes; docs/operations.md has a table of them."""
_BY_REASON = {cls.reason: cls for cls in CLASSES}

NOT_THERE = frozenset({NODE_STORE_DAMAGED.reason, CONTAINER_NOT_CREATED.reason})
"""The node reports that it has the image, but the node's copy is incomplete."""

NODES_OWN = frozenset(
    failure.reason
    for failure in (
        DISK_FULL,
        POD_REJECTED,
        POD_REMOVED,
        PLATFORM_MISSING,
        PULL_QPS_EXCEEDED,
        NODE_STORE_DAMAGED,
        CONTAINER_NOT_CREATED,
        SNAPSHOTTER_FAILED,
        NODE_DISK_FAILED,
        NODE_LIMIT_REACHED,
        IDS_OUT_OF_RANGE,
    )
)
"""Reasons whose cause is on one node: they say nothing about other nodes."""


def of_reason(reason: str) -> FailureClass:
    """The class with this reason; `PULL_FAILED` for an unknown reason."""
    return _BY_REASON.get(reason, PULL_FAILED)


def remedy(reason: str) -> str:
    """How a person can fix a failure."""
    return of_reason(reason).remedy


def ended(reason: str) -> FailureClass:
    """The class of a pod that failed before all of its images were pulled."""
    return PULLER_FAILED if reason == PULLER_FAILED.reason else POD_REJECTED
