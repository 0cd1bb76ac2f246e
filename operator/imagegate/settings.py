"""What the operator is told at start; made from the command line by `cli`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from imagegate.domain.policy import PrefetchPolicy
from imagegate.puller.build import PullerSettings
from imagegate.registry.endpoints import RegistrySettings


class GateSource(StrEnum):
    """Who puts the gate taint on a joining node."""

    POLICY = "policy"
    """The chart's MutatingAdmissionPolicy: no window."""
    WATCH = "watch"
    """The operator, when it sees the node: best effort."""
    NONE = "none"
    """Somebody else: kubelet --register-with-taints, Karpenter startupTaints, node pool taints."""


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
    """Whether nodes of the control plane are tainted by the watch, too."""
    gate_policy: str = "imagegate"
    prefetch_policy: PrefetchPolicy = field(default_factory=PrefetchPolicy)
    """What administrators let ImagePrefetches ask for."""
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    kubelet_account: str = ""
    """Service account in `namespace` whose tokens kubelets are shown; empty: none is asked."""
    kubelet_ca_file: str = ""
    """Who signs the kubelets' serving certificates; empty: the cluster's own CA."""
    kubelet_insecure_tls: bool = False
    http_port: int = 8080
    pushes_configmap: str = ""
    """Where `imagegate hooks` hands over pushes; empty: there is no such process."""
    resync_seconds: float = 300.0
    log_level: str = "info"
    log_format: str = "json"


@dataclass(frozen=True, slots=True)
class HooksSettings:
    """Of the process that receives push hooks."""

    namespace: str
    pushes_configmap: str
    file: Path
    """Who may tell of pushes."""
    port: int
    http_port: int
