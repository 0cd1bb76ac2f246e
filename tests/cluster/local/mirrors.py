"""A registry mirror, as for a zone: Docker Distribution as a pull-through cache."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import paths
from tests.cluster.local import network
from tests.cluster.local.processes import Group, wait_until
from tests.cluster.local.registries import Registry, copy

_PORT = 5000
_BLOB = re.compile(r'^(\S+) .*"GET /v2/(\S+)/blobs/(sha256:[0-9a-f]{64})\S* HTTP/\S+" 200 (\d+) ')


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """A blob that a registry or a mirror has served completely."""

    client: str  # address
    repository: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Mirror:
    """Fetches a missing image from the registry once and keeps it. A `frozen` mirror fetches
    nothing: it serves the images that were pushed to it, also if the registry has newer images.
    """

    registry: Registry  # a registry without password
    frozen: bool = False

    @property
    def group(self) -> Group:
        return self.registry.group

    @property
    def address(self) -> str:
        return f"{network.OPEN_REGISTRY}:{_PORT + self.frozen}"

    @property
    def log(self) -> Path:
        """Holds a line for each request."""
        return self.group.log(self._name)

    @property
    def _name(self) -> str:
        return "frozen-mirror" if self.frozen else "mirror"

    def start(self) -> None:
        folder = self.group.folder / self._name
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": self.address},
        }
        if not self.frozen:
            config["proxy"] = {"remoteurl": f"http://{self.registry.address}"}
        (folder / "config.yml").write_text(yaml.safe_dump(config))
        command = [paths.system("docker-registry"), "serve", str(folder / "config.yml")]
        process = self.group.start(self._name, command)
        wait_until(lambda: "listening on" in self.log.read_text(), self._name, 20, [process])

    def stop(self) -> None:
        self.group.stop(self._name, grace=0)

    def push(self, layout: Path, repository: str) -> None:
        """Pushes an image into a frozen mirror."""
        copy(self.group, layout, f"{self.address}/{repository}")

    def hosts_toml(self) -> str:
        """The content of certs.d/HOST/hosts.toml that makes containerd use the mirror first."""
        return (
            self.registry.hosts_files()[self.registry.host]
            + f'[host."http://{self.address}"]\n  capabilities = ["pull", "resolve"]\n'
        )


def blob_requests(log: Path) -> list[BlobRequest]:
    """Every blob that a registry or a mirror has served completely, in order, from its log."""
    found = map(_BLOB.match, log.read_text(errors="replace").splitlines())
    return [BlobRequest(m[1], m[2], m[3], int(m[4])) for m in found if m]
