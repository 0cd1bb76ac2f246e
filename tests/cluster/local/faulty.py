"""The registry with faults on request, and names of registries that cannot be reached.

`faulty.registry.test` serves the images of the open registry through `faultproxy.py`. The proxy
cannot make a connection fail before its HTTP request. Such failures have their own names, and apply
to every repository.
"""

import http.client
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.cluster.errors import ClusterError
from tests.cluster.local import network
from tests.cluster.local.processes import wait_until
from tests.cluster.local.registries import Registry

Kind = int | Literal["reset", "stall", "truncated", "corrupt", "slow"]
Operation = Literal["manifest", "blob", "token", "any"]

HOST = "faulty.registry.test"
UNTRUSTED = "untrusted.registry.test"
"""TLS with a certificate of an authority that the nodes do not trust."""
MISMATCH = "mismatch.registry.test"
"""TLS with a certificate for another name."""
PLAIN = "plain.registry.test"
"""Answers in plain HTTP to nodes that use TLS."""
REFUSED = "refused.registry.test"
"""No process listens."""
UNROUTABLE = "unroutable.registry.test"
"""No machine has the address: `no route to host`, after 3 s."""
UNRESOLVABLE = "unresolvable.registry.test"
"""The name server answers that the name does not exist."""
SERVFAIL = "servfail.registry.test"
"""The name server answers with SERVFAIL."""
SILENT = "silent.registry.test"
"""The name server does not answer: a lookup takes 10 s or more."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client to the faulty registry."""

    at: float  # seconds since the epoch
    client: str  # the address of a node
    method: str
    path: str
    repository: str
    operation: str  # manifest, blob, token, or empty
    status: int | None  # None: none was sent
    sent: int  # bytes of the body
    fault: str  # the kind of its fault, or empty
    ended: float | None  # None: not ended


@dataclass(frozen=True, slots=True)
class FaultyRegistry(Registry):
    """Images that are pushed to it are also in the open registry, under the same repository."""

    origin: Registry

    @property
    def address(self) -> str:
        """The control port. It has no faults, so `tags`, `digest` and `delete` always work."""
        return f"{network.FAULTY_REGISTRY}:8080"

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.authority.issue(self.host, self.host, (), [self.host, UNTRUSTED])

    def start(self, *, wait: bool = True) -> None:
        program = str(Path(__file__).with_name("faultproxy.py"))
        address = network.FAULTY_REGISTRY
        listen = [f"{address}:80", f"{address}:443", self.address]
        pair = [str(self.authority.folder / f"{self.host}.{kind}") for kind in ("crt", "key")]
        command = [sys.executable, "-I", program, self.origin.address, *listen, *pair]
        process = self.group.start(f"registry-{self.name}", command)
        if wait:
            wait_until(self._answers, f"{self.name} registry", 20, [process])

    def push(self, layout: Path, repository: str) -> str:
        self.origin.push(layout, repository)
        return f"{self.host}/{repository}"

    def hosts_files(self) -> dict[str, str]:
        trusted = f'ca = "{self.authority.certificate}"\n'
        servers = {name: f"http://{name}" for name in (self.host, REFUSED, UNROUTABLE)}
        servers |= {name: f"http://{name}" for name in (UNRESOLVABLE, SERVFAIL, SILENT)}
        servers |= {name: f"https://{name}" for name in (UNTRUSTED, MISMATCH)}
        servers[PLAIN] = f"https://{PLAIN}:80"
        files = {name: f'server = "{server}"\n' for name, server in servers.items()}
        files[MISMATCH] += trusted
        return files

    def fault(
        self,
        kind: Kind,
        *,
        repository: str = "*",
        operation: Operation = "any",
        times: int | None = None,
        after_bytes: int | None = None,
        bytes_per_second: int = 64 * 1024,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Makes matching requests fail from now on. The newest matching fault applies.

        `kind` is an HTTP status (401 with a Basic challenge, 429 with `Retry-After: 1`, unless
        `headers` replace them), or: reset (RST), stall (no more data), truncated (the connection is
        closed), each after `after_bytes` of the whole blob or manifest (default: half of it; a
        client that resumes gets no more); corrupt (the byte at that offset is changed, so the
        digest is wrong); slow (`bytes_per_second`). A blob that is not larger than `after_bytes`
        stays complete: 4096 excludes the image's config and includes its layers. `repository` is a
        glob. `times` is the number of requests; note that containerd repeats some by itself.
        """
        self._control(
            "POST",
            "/faults",
            {
                "kind": str(kind),
                "repository": repository,
                "operation": operation,
                "times": times,
                "after_bytes": after_bytes,
                "bytes_per_second": bytes_per_second,
                "headers": dict(headers or {}),
            },
        )

    def clear(self) -> None:
        """Removes all faults and closes stalled connections."""
        self._control("DELETE", "/faults")

    def requests(self, repository: str = "") -> list[Request]:
        """Every client request since the start, or only those for one repository."""
        found = [Request(**each) for each in self._control("GET", "/requests")]
        return [each for each in found if repository in ("", each.repository)]

    def _control(self, method: str, path: str, content: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body=json.dumps(content) if content else None)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ClusterError(f"{method} {path}: HTTP {response.status} {body!r}")
        return json.loads(body)
