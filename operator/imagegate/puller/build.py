"""Builds the puller pod for one group of images on one node.

The kubelet itself pulls, with its credentials and its bookkeeping. No code of a target image ever
runs. There are two kinds of pods (`mode`):

ImageVolume: each image is a mounted ``volumes[].image``. The only container runs the pause image
with ``-v``, which exits 0. The volumes are mounted, because only mounted volumes report errors in
the pod's status and protect their images from garbage collection while the pod exists.

Container: an init container copies a static busybox into an emptyDir. Then a container of each
image runs ``true`` of that busybox, so that images without any executable work, too. A failure of
this container does not matter (`read`), because the kubelet has pulled the image before.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imagegate.domain.facts import GROUP, PREFETCH_LABEL, Group, Node, Prefetch
from imagegate.puller.mode import Mode, choose

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "imagegate"
GROUP_LABEL = f"{GROUP}/group"
OBSERVED_ANNOTATION = f"{GROUP}/observed"
ATTEMPT_ANNOTATION = f"{GROUP}/attempt"
ALWAYS = "Always"
IF_NOT_PRESENT = "IfNotPresent"
HOLD = "hold"
"""The container of an ImageVolume pod: it mounts the images."""
IMAGE = "image-"
"""Prefix, before a number, of the volumes of ImageVolume pods and the containers of Container
pods."""
TOOLS = "/imagegate"
"""The directory with busybox in every container of a Container pod."""
SELECTOR = f"{MANAGED_BY}={MANAGER},{PREFETCH_LABEL}"
"""Label selector of all puller pods."""


RESOURCES: Mapping[str, Any] = {
    "requests": {"cpu": "1m", "memory": "4Mi"},
    "limits": {"memory": "32Mi"},
}


@dataclass(frozen=True, slots=True)
class PullerSettings:
    """Settings that all puller pods share; from the operator's flags."""

    image: str
    """A pause image: ``-v`` must exit 0. The node's sandbox image is best: it needs no pull."""
    busybox: str = ""
    """An image with a static /bin/busybox, for Container pods."""
    mode: Mode = Mode.AUTO
    priority_class: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=lambda: RESOURCES)
    """Resources of every container."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets for the pause and busybox images; every puller pod has them."""


def name(prefetch: Prefetch, node: Node, group: Group, attempt: int) -> str:
    """A deterministic name, so that a second create of the same pod only gets a 409.

    The name depends on the node's identity and the attempt. So a reboot or a failure leads to a new
    pod, for which the kubelet's back-off (per pod and image) starts again.
    """
    text = "\n".join((prefetch.uid, group.key, node.name, node.identity, str(attempt)))
    return f"ipf-{prefetch.name[:40].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def probe(namespace: str, settings: PullerSettings) -> dict[str, Any]:
    """A puller pod with an image volume, without a node or a prefetch, for a create with dryRun."""
    nowhere = Node(name="imagegate-probe", uid="probe", version=0)
    nothing = Prefetch(name="probe", uid="probe", version=0, namespace=namespace)
    settings = dataclasses.replace(settings, mode=Mode.IMAGE_VOLUME)
    manifest = build(nothing, nowhere, Group("probe", (settings.image,), ()), 0, settings)
    del manifest["spec"]["nodeName"], manifest["metadata"]["ownerReferences"]
    return manifest


def build(
    prefetch: Prefetch,
    node: Node,
    group: Group,
    attempt: int,
    settings: PullerSettings,
    *,
    again: bool = False,
    afresh: bool = False,
) -> dict[str, Any]:
    """The manifest of a puller pod in ``prefetch.namespace``.

    With ``refresh.mode`` Digest, the pod pulls the tag from the registry even if the node holds an
    image of this name, and then the digest (`Group.references`). ``again``: the pod replaces a
    deleted pod and only protects images that the node holds. The kubelet then does not ask the
    registry, because a tag that has moved must not be rolled out by accident, node by node.
    ``afresh``: the node lists the images, but lacks content of them. The runtime then asks the
    registry, and fetches the missing content.
    """
    parts = _by_volumes if choose(node, settings.mode) is Mode.IMAGE_VOLUME else _by_containers
    own = ALWAYS if afresh else IF_NOT_PRESENT
    secrets = dict.fromkeys((*group.pull_secrets, *settings.image_pull_secrets))
    spec: dict[str, Any] = {
        # Bound directly to the node, because the scheduler would add a delay, and because a Pending
        # pod makes autoscalers add nodes.
        "nodeName": node.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "tolerations": [{"operator": "Exists"}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65535,
            "runAsGroup": 65535,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **parts(_pulls(group, again=again, afresh=afresh), settings, own),
    }
    if secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in secrets]
    if settings.priority_class:
        spec["priorityClassName"] = settings.priority_class
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name(prefetch, node, group, attempt),
            "namespace": prefetch.namespace,
            "labels": {
                **settings.labels,
                "app.kubernetes.io/name": "imagegate-puller",
                "app.kubernetes.io/component": "puller",
                "app.kubernetes.io/instance": prefetch.name,
                MANAGED_BY: MANAGER,
                PREFETCH_LABEL: prefetch.name,
                GROUP_LABEL: group.key,
            },
            "annotations": {
                # cluster-autoscaler treats it as a DaemonSet's pod: the pod does not block a
                # scale-down, and needs no other node.
                "cluster-autoscaler.kubernetes.io/daemonset-pod": "true",
                **settings.annotations,
                OBSERVED_ANNOTATION: node.identity,
                ATTEMPT_ANNOTATION: str(attempt),
            },
            # Garbage collection deletes the pod with its node; `kubectl drain` and Karpenter
            # ignore the pod.
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "name": node.name,
                    "uid": node.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": spec,
    }


_Pulls = Sequence[tuple[str, str]]
"""Image references, each with its pull policy."""


def _pulls(group: Group, *, again: bool, afresh: bool) -> _Pulls:
    return [
        (each, ALWAYS if afresh or (each in group.pins and not again) else IF_NOT_PRESENT)
        for each in group.references
    ]


def _by_volumes(pulls: _Pulls, settings: PullerSettings, own: str) -> dict[str, Any]:
    """``own``: the pull policy of the puller pod's own image."""
    mounts = [
        {"name": f"{IMAGE}{index}", "mountPath": f"/images/{index}", "readOnly": True}
        for index in range(len(pulls))
    ]
    return {
        "containers": [_container(HOLD, settings.image, mounts, settings, own, args=["-v"])],
        "volumes": [
            {"name": f"{IMAGE}{index}", "image": {"reference": image, "pullPolicy": policy}}
            for index, (image, policy) in enumerate(pulls)
        ],
    }


def _by_containers(pulls: _Pulls, settings: PullerSettings, own: str) -> dict[str, Any]:
    here = {"name": "tools", "mountPath": TOOLS}
    copy = ["/bin/busybox", "cp", "/bin/busybox", f"{TOOLS}/busybox"]
    run: dict[str, Any] = {
        "command": [f"{TOOLS}/busybox", "true"],
        # The image's own working directory may be accessible only to the image's own user.
        "workingDir": TOOLS,
    }
    return {
        "initContainers": [
            _container("busybox", settings.busybox, [here], settings, own, command=copy)
        ],
        "containers": [
            *(
                _container(
                    f"{IMAGE}{index}",
                    image,
                    [{**here, "readOnly": True}],
                    settings,
                    policy,
                    **run,
                )
                for index, (image, policy) in enumerate(pulls)
            ),
            # The kubelet reports a failed pull at the pod's next sync. The end of this container
            # causes a sync immediately. Without it, the next sync comes after 10 to 15 s
            # (pkg/kubelet/pod_workers.go, backOffPeriod), together with the next attempt to pull.
            _container(
                "report", settings.busybox, [], settings, own, command=["/bin/busybox", "true"]
            ),
        ],
        "volumes": [{"name": "tools", "emptyDir": {}}],
    }


def _container(
    name: str,
    image: str,
    mounts: list[dict[str, Any]],
    settings: PullerSettings,
    policy: str,
    **run: Any,
) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": policy,
        **run,
        "resources": settings.resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
