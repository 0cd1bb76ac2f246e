"""The provider `kind`, for machines with Docker. It is small; `local` can do more.

`kind load` puts images onto the nodes under the names of the local registries, so pods find them
with `imagePullPolicy: IfNotPresent`.
"""

import shutil
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Self

import yaml

from tests.cluster import binaries, paths
from tests.cluster.errors import ClusterError, Unsupported
from tests.cluster.progress import step
from tests.cluster.provider import Cluster, ClusterOptions


class KindCluster(Cluster):
    """A cluster of the kind CLI. Nodes cannot be added, stopped or rebooted."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def start(cls, options: ClusterOptions) -> Self:
        """`options.node` supports only labels; other options need the provider `local`."""
        if not shutil.which("kind") or not shutil.which("docker"):
            raise ClusterError("the provider kind needs `kind` and `docker` on PATH")
        if options.extra_args or options.node.kubelet or options.node.containerd_toml:
            raise Unsupported("kind takes no flags of components here: use the provider local")
        cluster = cls(options.name)
        cluster.down()
        worker = {"role": "worker", "labels": options.node.labels}
        config = {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "nodes": [{"role": "control-plane"}, *[worker] * options.nodes],
        }
        with step(f"kind cluster {options.name} with {options.nodes} nodes"):
            _kind(
                "create", "cluster", f"--name={cluster.name}", "--wait=180s", "--config=-",
                f"--kubeconfig={cluster.kubeconfig}", stdin=yaml.safe_dump(config),
            )  # fmt: skip
        return cluster

    def down(self) -> None:
        _kind("delete", "cluster", f"--name={self.name}", f"--kubeconfig={self.kubeconfig}")
        self.kubeconfig.unlink(missing_ok=True)

    @cached_property
    def kubeconfig(self) -> Path:
        folder = paths.cache() / "kind"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.name}.kubeconfig"

    def program(self, name: str) -> Path:
        return program(name)

    def push_layout(self, layout: Path, repository: str, *, registry: str = "open") -> str:
        reference = f"{registry}.registry.test/{repository}"
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch, "image.tar")
            target = f"docker-archive:{archive}:{reference}"
            _run(["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}", target])
            _kind("load", "image-archive", str(archive), f"--name={self.name}")
        return reference

    def add_node(self, name: str) -> None:
        raise Unsupported(f"cannot add {name}: kind clusters have the nodes they started with")


def program(name: str) -> Path:
    """kubectl or helm: from PATH, or else built by the harness."""
    if found := shutil.which(name):
        return Path(found)
    return binaries.path(binaries.helm() if name == "helm" else binaries.kubernetes(), name)


def _kind(*args: str, stdin: str | None = None) -> None:
    _run(["kind", *args], stdin)


def _run(command: list[str], stdin: str | None = None) -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
