"""Settings of the operator; `cli` makes them from the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from imagegate.domain.policy import PrefetchPolicy
from imagegate.puller.build import PullerSettings
from imagegate.registry.endpoints import RegistrySettings


class GateSource(StrEnum):
    """The component that puts the gate taint on a joining node."""

    POLICY = "policy"
    """The chart's MutatingAdmissionPolicy, in the request that creates the Node."""
    WATCH = "watch"
    """The operator, after the watch event of the Node: best effort."""
    NONE = "none"
    """Another component: kubelet --register-with-taints, Karpenter startupTaints, node pools."""


@dataclass(frozen=True, slots=True)
class Settings:
    namespace: str
    identity: str
    lease_name: str = "imagegate"
    puller_namespaces: tuple[str, ...] = ("imagegate-system",)
    puller: PullerSettings = field(
        default_factory=lambda: PullerSettings(
            image="registry.k8s.io/pause:3.10", busybox="docker.io/library/busybox:1.37.0-musl"
        )
    )
    gate_taint_key: str = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
    gate_silence_seconds: int = 300
    gate_suspend: bool = False
    gate_source: GateSource = GateSource.POLICY
    gate_control_planes: bool = False
    """With `GateSource.WATCH`: whether control plane nodes are tainted, too."""
    gate_policy: str = "imagegate"
    prefetch_policy: PrefetchPolicy = field(default_factory=PrefetchPolicy)
    """Limits that administrators set for ImagePrefetches."""
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    kubelet_account: str = ""
    """Service account in `namespace` whose tokens kubelets get; empty: no kubelet is asked."""
    kubelet_ca_file: str = ""
    """CA of the kubelets' serving certificates; empty: the cluster's own CA."""
    kubelet_insecure_tls: bool = False
    http_port: int = 8080
    pushes_configmap: str = ""
    """ConfigMap in which `imagegate hooks` hands over pushes; empty: no push hooks."""
    resync_seconds: float = 300.0
    log_level: str = "info"
    log_format: str = "json"


@dataclass(frozen=True, slots=True)
class HooksSettings:
    """Settings of the process that receives push hooks."""

    namespace: str
    pushes_configmap: str
    file: Path
    """The file with the receivers of push hooks."""
    port: int
    http_port: int
