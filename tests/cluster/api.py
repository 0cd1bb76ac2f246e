"""A small JSON client of the Kubernetes API for polling, because kubectl takes 100 ms a call."""

import base64
import http.client
import json
import ssl
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.errors import ClusterError

Json = dict[str, Any]


class ApiError(ClusterError):
    """The API server refused a request; `status` is the HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class _Connection(http.client.HTTPSConnection):
    """Closes the socket when its thread ends, because a socket that is not closed causes a
    ResourceWarning."""

    def __del__(self) -> None:
        self.close()


class Api:
    """Requests as the user of a kubeconfig that has a client certificate or a token.

    Any thread may use it, because each thread has its own connection.
    """

    def __init__(self, kubeconfig: Path, context: str | None = None) -> None:
        cluster, user = _entries(kubeconfig, context)
        address = urllib.parse.urlsplit(cluster["server"])
        self._host, self._port = address.hostname or "", address.port or 443
        self._headers = {"Accept": "application/json"}
        if token := user.get("token"):
            self._headers["Authorization"] = f"Bearer {token}"
        self._ssl = _ssl_context(cluster, user)
        self._local = threading.local()

    def get(self, path: str) -> Json:
        return self.request("GET", path)

    def post(self, path: str, body: Json) -> Json:
        return self.request("POST", path, body)

    def put(self, path: str, body: Json) -> Json:
        return self.request("PUT", path, body)

    def delete(self, path: str, body: Json | None = None) -> Json:
        return self.request("DELETE", path, body)

    def patch(self, path: str, body: Json | list[Json], kind: str = "merge") -> Json:
        """`kind`: merge, strategic-merge or json (the latter takes a list)."""
        return self.request("PATCH", path, body, f"application/{kind}-patch+json")

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> Json:
        headers = self._headers | ({"Content-Type": content_type} if body is not None else {})
        data = None if body is None else json.dumps(body).encode()
        status, content = self._exchange(method, path, data, headers)
        if status >= 400:
            raise ApiError(status, f"{method} {path}: {_message(content)}")
        parsed: Json = json.loads(content)
        return parsed

    def raw(self, path: str) -> str:
        """The body of a GET that is not JSON: /metrics, logs, /healthz."""
        status, content = self._exchange("GET", path, None, {**self._headers, "Accept": "*/*"})
        if status >= 400:
            raise ApiError(status, f"GET {path}: {_message(content)}")
        return content.decode(errors="replace")

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """One request. If a reused connection ends without a response, the request is sent again on
        a new connection, because a server closes idle connections."""
        reused = hasattr(self._local, "connection")
        if not reused:
            self._local.connection = _Connection(
                self._host, self._port, context=self._ssl, timeout=60
            )
        connection: _Connection = self._local.connection
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            del self._local.connection
            if reused and isinstance(error, ConnectionError):
                return self._exchange(method, path, data, headers)
            if isinstance(error, OSError):
                raise
            raise ConnectionError(f"{method} {path}: {error!r}") from error


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        return content[:500].decode(errors="replace")


def _entries(kubeconfig: Path, context: str | None) -> tuple[dict[str, str], dict[str, str]]:
    config = yaml.safe_load(kubeconfig.read_text())

    def entry(kind: str, name: str) -> dict[str, Any]:
        found = [each for each in config.get(f"{kind}s") or [] if each["name"] == name]
        if not found:
            raise ClusterError(f"{kubeconfig} has no {kind} {name!r}")
        value: dict[str, Any] = found[0][kind]
        return value

    chosen = entry("context", context or config.get("current-context") or "")
    return entry("cluster", chosen["cluster"]), entry("user", chosen["user"])


def _ssl_context(cluster: dict[str, str], user: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    with _pem(cluster, "certificate-authority") as ca:
        if ca:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca))
    with _pem(user, "client-certificate") as certificate, _pem(user, "client-key") as key:
        if certificate and key:
            context.load_cert_chain(certificate, key)
    return context


@contextmanager
def _pem(entry: dict[str, str], field: str) -> Iterator[Path | None]:
    """The PEM file of a field. Data in the kubeconfig itself is written to a file, because `ssl`
    accepts only files."""
    if data := entry.get(f"{field}-data"):
        with tempfile.NamedTemporaryFile() as file:
            file.write(base64.b64decode(data))
            file.flush()
            yield Path(file.name)
    else:
        yield Path(entry[field]) if field in entry else None
