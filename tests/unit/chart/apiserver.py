"""A real API server with its etcd on loopback, without controllers and nodes."""

import contextlib
import dataclasses
import http.client
import json
import pathlib
import ssl
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.cluster import ports

from . import programs

ADMIN = "admin-token"
STARTUP_SECONDS = 50


@dataclasses.dataclass(frozen=True, slots=True)
class ApiServer:
    port: int
    certificate: pathlib.Path
    kubeconfig: pathlib.Path

    def request(
        self, method: str, path: str, body: object = None, *, token: str = ADMIN, patch: str = ""
    ) -> tuple[int, Any]:
        """The HTTP status and the decoded answer."""
        tls = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=tls, timeout=20)
        content = f"application/{patch}-patch+json" if patch else "application/json"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content}
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            answer = response.read()
            if response.headers.get_content_type() != "application/json":
                return response.status, answer.decode()
            return response.status, json.loads(answer)


@contextlib.contextmanager
def running(folder: pathlib.Path, tokens: dict[str, str], version: str = "") -> Iterator[ApiServer]:
    """Start etcd and an API server with RBAC and NodeRestriction; stop both at the end.

    `tokens` maps additional tokens to `user,uid,"groups"`; the administrator's token always exists.
    `version` is that of Kubernetes, as "v1.34"; by default `programs.find` chooses.
    """
    etcd = programs.find("etcd", "IMAGEGATE_ETCD", version)
    apiserver = programs.find("kube-apiserver", "IMAGEGATE_KUBE_APISERVER", version)
    client, peer, port = ports.free(3, ports.OTHERS)

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "service-account.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    lines = [
        f'{ADMIN},admin,admin,"system:masters"',
        *(f"{t},{user}" for t, user in tokens.items()),
    ]
    (folder / "tokens.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    commands = {
        "etcd": [
            etcd,
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls=http://127.0.0.1:{client}",
            f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
        "kube-apiserver": [
            apiserver,
            f"--etcd-servers=http://127.0.0.1:{client}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={folder}/certificates",
            f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            "--enable-admission-plugins=NodeRestriction",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder}/service-account.key",
            f"--service-account-signing-key-file={folder}/service-account.key",
        ],
    }
    server = ApiServer(port, folder / "certificates" / "apiserver.crt", folder / "kubeconfig")
    write_kubeconfig(server)
    with contextlib.ExitStack() as stack:
        started = {
            name: stack.enter_context(process(command, folder / f"{name}.log"))
            for name, command in commands.items()
        }
        deadline = time.monotonic() + STARTUP_SECONDS
        while not ready(server):
            for name, each in started.items():
                if each.poll() is not None or time.monotonic() > deadline:
                    log = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
                    pytest.fail(f"{name} did not start: {log[-3000:]}")
            time.sleep(0.2)
        yield server


def ready(server: ApiServer) -> bool:
    try:
        return server.request("GET", "/readyz")[0] == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False


@contextlib.contextmanager
def process(command: list[Any], log: pathlib.Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        started = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(3)
            except subprocess.TimeoutExpired:  # an API server drains for up to a minute
                started.kill()
                started.wait()


def write_kubeconfig(server: ApiServer) -> None:
    cluster = {
        "server": f"https://127.0.0.1:{server.port}",
        "certificate-authority": str(server.certificate),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": ADMIN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    server.kubeconfig.write_text(json.dumps(config), encoding="utf-8")
