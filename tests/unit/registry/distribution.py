"""Runs Debian's `docker-registry` on a free port of the loopback interface."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import ports

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

Descriptor = dict[str, Any]


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encoded(content: object) -> bytes:
    return json.dumps(content).encode()


@dataclass
class Registry:
    """A running registry, with methods that push images to it."""

    port: int
    context: ssl.SSLContext | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        return f"127.0.0.1:{self.port}"

    def blob(self, repository: str, data: bytes, media_type: str) -> Descriptor:
        digest = digest_of(data)
        _, headers = self._send("POST", f"/v2/{repository}/blobs/uploads/")
        location = headers["Location"]
        location += f"{'&' if '?' in location else '?'}digest={digest}"
        self._send("PUT", location, data, {"Content-Type": "application/octet-stream"})
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def manifest(self, repository: str, name: str, content: Mapping[str, Any]) -> Descriptor:
        """Put a manifest or index under a tag, or under its digest for the name ``""``."""
        data = encoded(content)
        media_type = str(content["mediaType"])
        self._send(
            "PUT",
            f"/v2/{repository}/manifests/{name or digest_of(data)}",
            data,
            {"Content-Type": media_type},
        )
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def image(
        self,
        repository: str,
        name: str,
        *,
        layers: tuple[bytes, ...] = (b"layer",),
        platform: Mapping[str, str] | None = None,
        docker: bool = False,
        layer_type: str = "",
    ) -> Descriptor:
        config = encoded(platform or {"os": "linux", "architecture": "amd64"})
        gzip = layer_type or (DOCKER_GZIP if docker else OCI_GZIP)
        content = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
            "config": self.blob(repository, config, DOCKER_CONFIG if docker else OCI_CONFIG),
            "layers": [self.blob(repository, layer, gzip) for layer in layers],
        }
        return self.manifest(repository, name, content)

    def index(
        self, repository: str, name: str, entries: list[Descriptor], *, docker: bool = False
    ) -> Descriptor:
        media_type = DOCKER_LIST if docker else OCI_INDEX
        content = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
        return self.manifest(repository, name, content)

    def _send(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str]]:
        scheme = "https" if self.context else "http"
        request = urllib.request.Request(
            f"{scheme}://{self.domain}{path}",
            data,
            {**self.headers, **(headers or {})},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=10, context=self.context) as response:
            return response.status, response.headers


@contextlib.contextmanager
def serve(
    folder: Path,
    *,
    auth: Mapping[str, Any] | None = None,
    tls: tuple[Path, Path] | None = None,
    context: ssl.SSLContext | None = None,
) -> Iterator[Registry]:
    """A registry with storage in memory; `tls` is a certificate and its key."""
    port = ports.one()
    http: dict[str, Any] = {"addr": f"127.0.0.1:{port}", "relativeurls": True}
    if tls is not None:
        http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"inmemory": {}},
        "http": http,
        **({"auth": dict(auth)} if auth else {}),
    }
    path = folder / f"registry-{port}.yaml"
    path.write_text(yaml.safe_dump(config))
    log = path.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/usr/bin/docker-registry", "serve", str(path)], stdout=output, stderr=output
        )
    try:
        _wait(process, port, log)
        yield Registry(port, context)
    finally:
        process.terminate()
        process.wait(10)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"docker-registry does not serve:\n{log.read_text()}")


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
