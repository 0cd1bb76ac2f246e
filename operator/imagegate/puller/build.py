"""The puller pod of one group of images on one node.

The pull, its credentials and its bookkeeping are the kubelet's own, and nothing of a target image
ever executes. Two kinds (`mode`):

ImageVolume: each image is a mounted ``volumes[].image`` and the container is the pause image's
``-v``, which exits 0. Mounted, because only mounted volumes report their errors in the pod's status
and pin their images while the pod exists.

Container: an init container copies a static busybox into an emptyDir, and a container of each image
runs that one's ``true``: images without a runnable file work as well. Whether it can run at all
does not matter (`read`): the kubelet has pulled the image by then.
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
"""The volumes of an ImageVolume pod and the containers of a Container pod: this and a number."""
TOOLS = "/imagegate"
"""Where the busybox is in every container of a Container pod."""
SELECTOR = f"{MANAGED_BY}={MANAGER},{PREFETCH_LABEL}"
"""Server-side label selector of every puller pod of ours."""


RESOURCES: Mapping[str, Any] = {
    "requests": {"cpu": "1m", "memory": "4Mi"},
    "limits": {"memory": "32Mi"},
}


@dataclass(frozen=True, slots=True)
class PullerSettings:
    """What is the same for every puller pod; from the operator's flags."""

    image: str
    """A pause image: ``-v`` must exit 0. Best the node's own sandbox image, which is there."""
    busybox: str = ""
    """An image with a static /bin/busybox, for Container pods."""
    mode: Mode = Mode.AUTO
    priority_class: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=lambda: RESOURCES)
    """Of every container."""
    image_pull_secrets: tuple[str, ...] = ()
    """For the pause and busybox images themselves; given to every puller pod."""


def name(prefetch: Prefetch, node: Node, group: Group, attempt: int) -> str:
    """Deterministic, so that a second create of the same pod is a 409 and nothing more.

    The node's identity and the attempt are part of it: after a reboot, and after a failure, the
    pod is another one, and the kubelet's back-off (kept per pod and image) starts afresh.
    """
    text = "\n".join((prefetch.uid, group.key, node.name, node.identity, str(attempt)))
    return f"ipf-{prefetch.name[:40].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def probe(namespace: str, settings: PullerSettings) -> dict[str, Any]:
    """A puller pod with an image volume, of no node and no prefetch: to be created with dryRun."""
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
    """The manifest, ready to be created in ``prefetch.namespace``.

    A tag that is followed is asked for at the registry, whatever the node has, and then the digest
    is made sure of. Not so ``again``, when a pod is put back that only pins what is there: the tag
    may have moved since, and is not to be rolled out node by node by accident. ``afresh``: the node
    says that it has the images, but does not have all of them; the runtime asks the registry, and
    fetches what it lacks.
    """
    parts = _by_volumes if choose(node, settings.mode) is Mode.IMAGE_VOLUME else _by_containers
    own = ALWAYS if afresh else IF_NOT_PRESENT
    secrets = dict.fromkeys((*group.pull_secrets, *settings.image_pull_secrets))
    spec: dict[str, Any] = {
        # Bound directly: the scheduler would honour our own NoSchedule taint's absence only
        # after a round trip, and a Pending pod makes autoscalers add nodes.
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
                # cluster-autoscaler: as a DaemonSet's pod, it neither blocks a scale-down nor
                # has to be rescheduled anywhere.
                "cluster-autoscaler.kubernetes.io/daemonset-pod": "true",
                **settings.annotations,
                OBSERVED_ANNOTATION: node.identity,
                ATTEMPT_ANNOTATION: str(attempt),
            },
            # Collected with its node; `kubectl drain` and Karpenter leave it alone.
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
"""References, each with its pull policy."""


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
        # The image's own may be a folder that only its own user may enter.
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
            # The kubelet reports a failed pull when it looks at the pod next. Without the end of
            # a container that is in 10 to 15 s (pkg/kubelet/pod_workers.go, backOffPeriod), in the
            # very moment in which it pulls again; with this one at once, and before that.
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
