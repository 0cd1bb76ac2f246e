"""The interface of a cluster for tests, the same for all providers.

`local` has all capabilities, `kind` and `existing` have fewer. A test calls `require`, and is
skipped with a reason if a capability is missing.
"""

import enum
import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import diagnostics, images
from tests.cluster.api import Api, Json
from tests.cluster.errors import ClusterError, Unsupported


class Capability(enum.StrEnum):
    """Abilities that only some providers have."""

    ADD_NODE = "add-node"  # add_node, remove_node, NodeOptions
    REBOOT = "reboot"  # Node.stop, start, reboot
    CONTAINERD = "containerd"  # Node.ctr, images, image_events
    REGISTRIES = "registries"  # push to, stop and start of the registries; faults
    KWOK = "kwok"
    PROMETHEUS = "prometheus"
    CONTROL_PLANE = "control-plane"  # stop and start of the API server, audit log


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """The special options of a node, which it keeps over stop, start and reboot."""

    labels: dict[str, str] = field(default_factory=dict)
    register_with_taints: tuple[str, ...] = ()  # "key=value:Effect"
    kubelet: dict[str, Any] = field(default_factory=dict)  # merged into KubeletConfiguration
    containerd_toml: str = ""  # appended to containerd's configuration
    containerd: str = ""  # "1.7": an older containerd without image volumes
    pull_progress_timeout: str = "5m"  # after which containerd cancels a stalled pull
    kubernetes: str = (
        ""  # of kubelet and kube-proxy; a folder of build/kubernetes/, else the cluster's
    )


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    name: str = "imagegate"
    nodes: int = 2
    node: NodeOptions = field(default_factory=NodeOptions)  # of the first nodes
    kubernetes: str = "v1.36"  # a folder of build/kubernetes/
    extra_args: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by component
    cpu_weight: int = 100  # 1 to 10000, against other processes on this machine (cgroups)


class Cluster(ABC):
    """A running Kubernetes cluster."""

    name: str
    capabilities: frozenset[Capability] = frozenset()

    @property
    @abstractmethod
    def kubeconfig(self) -> Path:
        """A kubeconfig that works on this machine."""

    @abstractmethod
    def program(self, name: str) -> Path:
        """The `kubectl` or `helm` to use."""

    @abstractmethod
    def down(self) -> None:
        """Ends the cluster and all of its processes. May be called twice."""

    @abstractmethod
    def push_layout(self, layout: Path, repository: str, *, registry: str = "open") -> str:
        """Makes an OCI layout available to nodes; returns the image reference for pods."""

    def push(self, image: str, repository: str, *, registry: str = "open", seed: int = 0) -> str:
        """Makes a test image (see `images.py`) available to nodes as, for example, `team/app:1`."""
        return self.push_layout(images.build(image, seed=seed), repository, registry=registry)

    @property
    def context(self) -> str | None:
        """The kubeconfig's context, if it is not the current context."""
        return None

    @cached_property
    def api(self) -> Api:
        return Api(self.kubeconfig, self.context)

    def require(self, *wanted: Capability) -> None:
        for capability in wanted:
            if capability not in self.capabilities:
                raise Unsupported(f"provider {type(self).__name__} has no {capability}")

    def command(self, program: str, *args: str) -> list[str]:
        chosen = [f"--kube-context={self.context}"] if self.context else []
        if program == "kubectl":
            chosen = [f"--context={self.context}"] if self.context else []
        return [str(self.program(program)), f"--kubeconfig={self.kubeconfig}", *chosen, *args]

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> str:
        return _run(self.command("kubectl", *args), stdin, check)

    def kubectl_json(self, *args: str) -> Json:
        parsed: Json = json.loads(self.kubectl(*args, "-o", "json"))
        return parsed

    def apply(self, *manifests: Json | str) -> str:
        """Server-side apply of dicts or YAML texts."""
        texts = [each if isinstance(each, str) else yaml.safe_dump(each) for each in manifests]
        return self.kubectl("apply", "--server-side", "-f", "-", stdin="\n---\n".join(texts))

    def helm(self, *args: str, stdin: str | None = None, check: bool = True) -> str:
        return _run(self.command("helm", *args), stdin, check)

    def wait(self, done: Callable[[], bool], what: str, timeout: float = 60) -> None:
        """Polls ten times a second; errors of the API count as `not yet`."""
        deadline = time.monotonic() + timeout
        last: Exception | None = None
        while time.monotonic() < deadline:
            try:
                if done():
                    return
            except (ClusterError, OSError) as error:
                last = error
            time.sleep(0.1)
        raise ClusterError(f"{what}: not within {timeout:.0f} s" + (f" ({last})" if last else ""))

    def logs(self) -> Iterator[Path]:
        """Log files of the cluster's components, if they are files on this machine."""
        return iter(())

    def dump(self, folder: Path) -> None:
        """Writes diagnostics after a failed test; never fails itself."""
        diagnostics.dump(self, folder)


def _run(command: list[str], stdin: str | None, check: bool) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode:
        name, args = Path(command[0]).name, " ".join(command[2:])
        raise ClusterError(f"{name} {args}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
