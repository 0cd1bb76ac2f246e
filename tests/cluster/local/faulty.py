"""The registry that misbehaves on command, and names under which there is none to reach.

`faulty.registry.test` serves what the open registry has, through `faultproxy.py`. What fails before
any HTTP request cannot be commanded; it has names of its own, which serve any repository as badly.
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
"""TLS, with a certificate of an authority that the nodes do not know."""
MISMATCH = "mismatch.registry.test"
"""TLS, with a certificate for another name."""
PLAIN = "plain.registry.test"
"""Answers in plain HTTP where nodes speak TLS."""
REFUSED = "refused.registry.test"
"""Nobody listens."""
UNROUTABLE = "unroutable.registry.test"
"""No machine has the address: `no route to host`, after 3 s."""
UNRESOLVABLE = "unresolvable.registry.test"
"""The name server says that there is no such name."""
SERVFAIL = "servfail.registry.test"
"""The name server fails."""
SILENT = "silent.registry.test"
"""The name server does not answer: a lookup takes 10 s or more."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request that a client made of the faulty registry."""

    at: float  # seconds since the epoch
    client: str  # the address of a node
    method: str
    path: str
    repository: str
    operation: str  # manifest, blob, token, or nothing
    status: int | None  # None: none was sent
    sent: int  # bytes of the body
    fault: str  # what went wrong with it, if anything
    ended: float | None  # None: it goes on


@dataclass(frozen=True, slots=True)
class FaultyRegistry(Registry):
    """Images pushed to it are in the open registry as well, under the same repository."""

    origin: Registry

    @property
    def address(self) -> str:
        """The control port; there are no faults, so `tags`, `digest` and `delete` just work."""
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
        """From now on requests fail, the newest fault that fits first.

        `kind` is an HTTP status (401 with a Basic challenge, 429 with `Retry-After: 1`, unless
        `headers` say otherwise), or: reset (RST), stall (nothing more comes), truncated (the
        connection is closed), each once `after_bytes` of the whole blob or manifest are sent (the
        half of it; a client that resumes gets no further); corrupt (the byte there is another, so
        the digest is wrong); slow (`bytes_per_second`). What is not larger than `after_bytes` stays
        whole: 4096 spares the image's config and hits its layers. `repository` is a glob, `times`
        the number of requests it is good for: note that containerd repeats some by itself.
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
        """No faults any more; connections that stall are hung up."""
        self._control("DELETE", "/faults")

    def requests(self, repository: str = "") -> list[Request]:
        """Every request of a client since the start, or those about one repository."""
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
