"""Two Docker Distribution registries: one open over plain HTTP, one with TLS and a password.

A third name, `faulty.registry.test`, leads to the open one through a proxy (`faulty.py`).

Each listens on the default port of its own address, so that image references have the usual form:
`open.registry.test/team/app:1`. Nodes resolve the names by /etc/hosts, pods by `dns.py`.
"""

import base64
import hashlib
import http.client
import json
import shutil
import ssl
import subprocess
import urllib.parse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import paths
from tests.cluster.errors import ClusterError
from tests.cluster.local import network
from tests.cluster.local.pki import Authority
from tests.cluster.local.processes import Group, wait_until

_MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)
NAMES = {
    "open.registry.test": network.OPEN_REGISTRY,
    "secure.registry.test": network.SECURE_REGISTRY,
    # Of `faulty.py`:
    "faulty.registry.test": network.FAULTY_REGISTRY,
    "untrusted.registry.test": network.FAULTY_REGISTRY,
    "mismatch.registry.test": network.FAULTY_REGISTRY,
    "plain.registry.test": network.FAULTY_REGISTRY,
    "refused.registry.test": network.CONTROL_PLANE,
    "unroutable.registry.test": network.NOBODY,
}


@dataclass(frozen=True, slots=True)
class Registry:
    """One registry. It keeps its images over stop and start."""

    name: str  # open, secure, faulty
    group: Group
    authority: Authority
    port: int  # of loopback

    @property
    def secure(self) -> bool:
        return self.name == "secure"

    @property
    def host(self) -> str:
        """The name in image references."""
        return f"{self.name}.registry.test"

    @property
    def address(self) -> str:
        """The address and port on which it listens, inside the cluster's network."""
        return f"{NAMES[self.host]}:{443 if self.secure else 80}"

    @property
    def username(self) -> str:
        return "puller"

    @property
    def password(self) -> str:
        return "correct-horse"

    @property
    def ca_pem(self) -> str:
        """The CA of its certificate, which a client must trust."""
        return self.authority.certificate.read_text()

    @property
    def folder(self) -> Path:
        return self.group.folder / f"registry-{self.name}"

    @property
    def log(self) -> Path:
        """Holds a line for each request."""
        return self.group.log(f"registry-{self.name}")

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        http_section: dict[str, Any] = {"addr": self.address}
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "data")},
                "delete": {"enabled": True},
            },
            "http": http_section,
        }
        if self.secure:
            addresses = ["127.0.0.1", network.SECURE_REGISTRY]
            pair = self.authority.issue(self.host, self.host, (), [self.host], addresses)
            http_section["tls"] = {"certificate": str(pair.certificate), "key": str(pair.key)}
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(self._write_htpasswd())}}
        (self.folder / "config.yml").write_text(yaml.safe_dump(config))

    def start(self, *, wait: bool = True) -> None:
        command = [paths.system("docker-registry"), "serve", str(self.folder / "config.yml")]
        process = self.group.start(f"registry-{self.name}", command)
        if wait:
            wait_until(self._answers, f"{self.name} registry", 20, [process])

    def stop(self) -> None:
        """Stops the registry, so that pulls get `connection refused`."""
        self.group.stop(f"registry-{self.name}", grace=0)

    @contextmanager
    def notifying(self, url: str, authorization: str) -> Iterator[None]:
        """Configures the registry to send an event for every push, in a `with` block.

        The registry restarts at the beginning and at the end, and is down for a moment.
        """
        file = self.folder / "config.yml"
        before = file.read_text()
        endpoint = {
            "name": "imagegate",
            "url": url,
            "headers": {"Authorization": [authorization]},
            "timeout": "2s",
            "threshold": 5,
            "backoff": "1s",
            "ignore": {"actions": ["pull"], "mediatypes": ["application/octet-stream"]},
        }
        config = yaml.safe_load(before) | {"notifications": {"endpoints": [endpoint]}}
        self._configure(yaml.safe_dump(config))
        try:
            yield
        finally:
            self._configure(before)

    def _configure(self, text: str) -> None:
        (self.folder / "config.yml").write_text(text)
        self.stop()
        self.start()

    def push(self, layout: Path, repository: str) -> str:
        """Copies an OCI layout into the registry; returns its reference."""
        login = []
        if self.secure:
            certificates = self.folder / "trusted"
            certificates.mkdir(exist_ok=True)
            shutil.copy(self.authority.certificate, certificates / "ca.crt")
            login += [f"--dest-cert-dir={certificates}"]
            login += ["--dest-creds", f"{self.username}:{self.password}"]
        copy(self.group, layout, f"{self.address}/{repository}", *login)
        return f"{self.host}/{repository}"

    def tags(self, repository: str) -> list[str]:
        status, _, body = self.request("GET", f"/v2/{repository}/tags/list")
        if status == 404:
            return []
        return sorted(json.loads(body).get("tags") or [])

    def tag(self, repository: str, tags: Iterable[str]) -> None:
        """Gives the manifest of `team/app:1` more tags, thousands in a second: writes them into the
        registry's storage."""
        name, digest = repository.rpartition(":")[0], self.digest(repository)
        algorithm, _, encoded = digest.partition(":")
        folder = self.folder / "data/docker/registry/v2/repositories" / name / "_manifests/tags"
        for tag in tags:
            for link in (
                folder / tag / "current",
                folder / tag / "index" / algorithm / encoded,
            ):
                link.mkdir(parents=True, exist_ok=True)
                (link / "link").write_text(digest)

    def digest(self, repository: str) -> str:
        """The digest of `team/app:1`, from the registry."""
        name, _, tag = repository.rpartition(":")
        status, headers, _ = self.request("HEAD", f"/v2/{name}/manifests/{tag}")
        if status != 200:
            raise ClusterError(f"{self.host}/{repository}: HTTP {status}")
        return headers["Docker-Content-Digest"]

    def delete(self, repository: str) -> None:
        """Deletes the manifest of `team/app:1`, and therefore every tag of this manifest."""
        name = repository.rpartition(":")[0]
        status, _, body = self.request("DELETE", f"/v2/{name}/manifests/{self.digest(repository)}")
        if status != 202:
            raise ClusterError(f"delete {self.host}/{repository}: HTTP {status} {body!r}")

    def dockerconfigjson(self) -> str:
        """The content of a pull secret (`kubernetes.io/dockerconfigjson`)."""
        entry = {"username": self.username, "password": self.password, "auth": self._basic()}
        return json.dumps({"auths": {self.host: entry}})

    def hosts_files(self) -> dict[str, str]:
        """containerd's configuration for this registry: certs.d/HOST/hosts.toml by host."""
        scheme = "https" if self.secure else "http"
        text = f'server = "{scheme}://{self.host}"\n'
        text += f'ca = "{self.authority.certificate}"\n' if self.secure else ""
        return {self.host: text}

    def push_manifest(
        self, repository: str, config: tuple[str, bytes], *layers: tuple[str, bytes]
    ) -> str:
        """Pushes an unusual manifest to `team/odd:1`: config and layers with any media types and
        contents. Returns the reference to pull."""
        name, _, tag = repository.rpartition(":")

        def blob(media_type: str, content: bytes) -> dict[str, object]:
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            _, headers, _ = self.request("POST", f"/v2/{name}/blobs/uploads/")
            location = urllib.parse.urlsplit(headers["Location"])
            path = f"{location.path}?{location.query}&digest={digest}"
            status, _, said = self.request("PUT", path, content, "application/octet-stream")
            if status != 201:
                raise ClusterError(f"push a blob of {repository}: HTTP {status} {said!r}")
            return {"mediaType": media_type, "digest": digest, "size": len(content)}

        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": blob(*config),
            "layers": [blob(*layer) for layer in layers],
        }
        body = json.dumps(manifest).encode()
        status, _, said = self.request("PUT", f"/v2/{name}/manifests/{tag}", body, kind)
        if status != 201:
            raise ClusterError(f"push {repository}: HTTP {status} {said!r}")
        return f"{self.host}/{repository}"

    def request(
        self, method: str, path: str, body: bytes | None = None, content_type: str = ""
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request to the registry API, with the password if the registry needs it."""
        connection: http.client.HTTPConnection
        headers = {"Accept": _MANIFESTS}
        if content_type:
            headers["Content-Type"] = content_type
        if self.secure:
            context = ssl.create_default_context(cafile=str(self.authority.certificate))
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, context=context, timeout=30
            )
            headers["Authorization"] = f"Basic {self._basic()}"
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.msg, response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{self.host}: {error!r}") from error
        finally:
            connection.close()

    def _answers(self) -> bool:
        return self.request("GET", "/v2/")[0] == 200

    def _basic(self) -> str:
        return base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    def _write_htpasswd(self) -> Path:
        command = [paths.system("htpasswd"), "-n", "-i", "-B", "-C", "4", self.username]
        done = subprocess.run(
            command, input=self.password, capture_output=True, text=True, check=True
        )
        path = self.folder / "htpasswd"
        path.write_text(done.stdout.strip() + "\n")
        return path


def copy(group: Group, layout: Path, target: str, *login: str) -> None:
    """Copies an OCI layout to `host:port/team/app:1`, with all platforms and unchanged digests.
    Uses plain HTTP without `login`.

    skopeo runs inside the network namespace, so that the data does not pass the forwarder.
    """
    command = [
        paths.system("skopeo"),
        "--insecure-policy",
        "copy",
        "--quiet",
        "--all",
        "--preserve-digests",
    ]
    command += login or ["--dest-tls-verify=false"]
    network.run(group, [*command, f"oci:{layout}", f"docker://{target}"])
