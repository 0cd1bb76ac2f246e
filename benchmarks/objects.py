"""Nodes like those of a real cluster: 50 images, 35 labels, managedFields, about 15 KB of JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from typing import Any

Body = dict[str, Any]

ZONES = ("eu-central-1a", "eu-central-1b", "eu-central-1c")
LISTED = 50
MB = 10**6


class Shared(list[Any]):
    """A list that thousands of objects share. It is never changed or copied, and is encoded to
    JSON once.
    """

    __slots__ = ("encoded",)

    def __init__(self, items: Iterable[Any]) -> None:
        super().__init__(items)
        self.encoded = json.dumps(list(self), separators=(",", ":")).encode()

    def __deepcopy__(self, memo: object) -> Shared:
        return self


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@cache
def images(pulled: frozenset[str] = frozenset()) -> Shared:
    """``status.images``, sorted by size: the usual images of a node, and the pulled images."""
    repository = "ghcr.io/platform"
    listed = [
        (f"{repository}/component-{index:02}", f"v1.{index}.0-eksbuild.{index % 7}", index)
        for index in range(LISTED)
    ]
    found = [
        {"names": [f"{name}@{digest(name)}", f"{name}:{tag}"], "sizeBytes": (20 + 9 * size) * MB}
        for name, tag, size in listed
    ]
    found += [
        {
            "names": [f"{image.rpartition(':')[0]}@{digest(image)}", image],
            "sizeBytes": 900 * MB + index,
        }
        for index, image in enumerate(sorted(pulled))
    ]
    return Shared(sorted(found, key=lambda image: -int(str(image["sizeBytes"])))[:LISTED])


@cache
def _managed_fields() -> Shared:
    """``managedFields`` after writes of the kubelet and of the cloud's node controller."""
    conditions: Body = {
        f'k:{{"type":"{name}"}}': {
            ".": {},
            "f:lastHeartbeatTime": {},
            "f:lastTransitionTime": {},
            "f:message": {},
            "f:reason": {},
            "f:status": {},
            "f:type": {},
        }
        for name in ("DiskPressure", "MemoryPressure", "PIDPressure", "Ready")
    }
    labels: Body = {f"f:{key}": {} for key in _labels(0)}
    return Shared(
        {
            "manager": manager,
            "operation": "Update",
            "apiVersion": "v1",
            "time": "2026-11-20T08:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        }
        for manager, fields in (
            ("kubelet", {"f:metadata": {"f:annotations": {".": {}}, "f:labels": labels}}),
            ("aws-cloud-controller-manager", {"f:spec": {"f:providerID": {}, "f:taints": {}}}),
            (
                "kubelet",
                {"f:status": {"f:conditions": conditions, "f:images": {}, "f:nodeInfo": {}}},
            ),
        )
    )


def _labels(number: int) -> dict[str, str]:
    zone = ZONES[number % len(ZONES)]
    return {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/instance-type": "m6i.4xlarge",
        "beta.kubernetes.io/os": "linux",
        "eks.amazonaws.com/capacityType": "ON_DEMAND",
        "eks.amazonaws.com/nodegroup": f"workers-{number % 20}",
        "eks.amazonaws.com/nodegroup-image": "ami-0123456789abcdef0",
        "failure-domain.beta.kubernetes.io/region": zone[:-1],
        "failure-domain.beta.kubernetes.io/zone": zone,
        "k8s.io/cloud-provider-aws": "0123456789abcdef0123456789abcdef",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name(number),
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "m6i.4xlarge",
        "topology.ebs.csi.aws.com/zone": zone,
        "topology.kubernetes.io/region": zone[:-1],
        "topology.kubernetes.io/zone": zone,
        "topology.k8s.aws/zone-id": f"euc1-az{number % 3}",
        **{
            f"feature.node.kubernetes.io/cpu-cpuid.{feature}": "true"
            for feature in (
                *("ADX", "AESNI", "AVX", "AVX2", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512F"),
                *("AVX512VL", "BMI1", "FMA3", "GFNI", "MPX", "SHA", "VAES", "WBNOINVD", "XSAVE"),
            )
        },
    }


def name(number: int) -> str:
    return f"ip-10-{number >> 16 & 255}-{number >> 8 & 255}-{number & 255}.eu-central-1.internal"


def conditions(now: str, ready_since: str, *, ready: bool) -> list[Body]:
    def condition(type_: str, status: str, reason: str, since: str) -> Body:
        return {
            "type": type_,
            "status": status,
            "lastHeartbeatTime": now,
            "lastTransitionTime": since,
            "reason": reason,
            "message": f"kubelet reports {reason}",
        }

    born = "2026-11-20T08:00:00Z"
    return [
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory", born),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", born),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", born),
        condition(
            "Ready",
            "True" if ready else "False",
            "KubeletReady" if ready else "KubeletNotReady",
            ready_since,
        ),
    ]


def node(number: int, now: str, *, ready: bool = True) -> Body:
    """A Node as its kubelet registers it. `memory.cluster.Rendered` needs ``status`` last."""
    address = ".".join(["10", *(str(number >> shift & 255) for shift in (16, 8, 0))])
    capacity = {
        "cpu": "16",
        "ephemeral-storage": "104845292Ki",
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
        "memory": "64407032Ki",
        "pods": "234",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name(number),
            "labels": _labels(number),
            "annotations": {
                "alpha.kubernetes.io/provided-node-ip": address,
                "csi.volume.kubernetes.io/nodeid": f'{{"ebs.csi.aws.com":"i-{number:017x}"}}',
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
            "managedFields": _managed_fields(),
        },
        "spec": {"providerID": f"aws:///{ZONES[number % 3]}/i-{number:017x}"},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "InternalDNS", "address": name(number)},
                {"type": "Hostname", "address": name(number)},
            ],
            "allocatable": {**capacity, "cpu": "15890m", "memory": "60Gi"},
            "capacity": capacity,
            "conditions": conditions(now, now, ready=ready),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": f"{digest(f'boot {number}')[7:43]}",
                "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": "6.12.40-63.114.amzn2023.x86_64",
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.36.0-eks-113cf36",
                "machineID": digest(f"machine {number}")[7:39],
                "operatingSystem": "linux",
                "osImage": "Amazon Linux 2023.8.20250818",
                "systemUUID": digest(f"system {number}")[7:43],
            },
            "images": images(),
        },
    }


def prefetch(name: str, *wanted: str, **spec: Any) -> Body:
    return {
        "apiVersion": "imagegate.dev/v1alpha1",
        "kind": "ImagePrefetch",
        "metadata": {"name": name},
        "spec": {"images": [{"image": image} for image in wanted], **spec},
    }
