"""The faulty registry's proxy applies the requested faults, and only these."""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster import ports
from tests.cluster.local import faultproxy
from tests.cluster.local.pki import Authority

BLOB = bytes(range(256)) * 1024
MANIFEST = "/v2/team/app/manifests/1"
LAYER = "/v2/team/app/blobs/sha256:ab"


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        begin = int((self.headers["Range"] or "bytes=0-")[6:-1])
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(BLOB) - 1}/{len(BLOB)}")
        self.send_header("Content-Length", str(len(BLOB) - begin))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(BLOB[begin:])

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None: ...


class Proxy:
    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        authority.create()
        pair = authority.issue("faulty", "faulty", (), ["faulty"])
        chosen = ports.free(4, ports.OTHERS)
        upstream = faultproxy.Server(("127.0.0.1", chosen[0]), Upstream)
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        arguments = [f"127.0.0.1:{port}" for port in chosen]
        arguments += [str(pair.certificate), str(pair.key)]
        threading.Thread(target=faultproxy.serve, args=arguments, daemon=True).start()
        self.port, self.control = chosen[1], chosen[3]
        self.wait()

    def wait(self) -> None:
        for port in (self.port, self.control):
            for _ in range(100):
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.02)

    def call(self, method: str, path: str, content: object = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.control, timeout=5)
        with closing(connection):
            connection.request(method, path, json.dumps(content) if content else None)
            return connection.getresponse().read()

    def fault(self, kind: str, **more: object) -> None:
        self.call("POST", "/faults", {"kind": kind, **more})

    def get(
        self, path: str = LAYER, method: str = "GET", begin: int = 0, timeout: float = 5
    ) -> tuple[int, bytes, str]:
        """The status, the received part of the body, and the error that ended it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        body = b""
        with closing(connection):
            connection.request(method, path, headers={"Range": f"bytes={begin}-"} if begin else {})
            try:
                response = connection.getresponse()
            except OSError as error:
                return 0, b"", type(error).__name__
            with closing(response):
                try:
                    while data := response.read1(65536):
                        body += data
                except OSError as error:
                    return response.status, body, type(error).__name__
                expected = int(response.headers["Content-Length"])
        complete = method == "HEAD" or len(body) == expected
        return response.status, body, "" if complete else "short"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Proxy:
    return Proxy(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def proxy(running: Proxy) -> Iterator[Proxy]:
    running.call("DELETE", "/faults")
    yield running
    running.call("DELETE", "/faults")


HALF = BLOB[: len(BLOB) // 2]


def test_proxy_without_faults_passes_and_records_every_request(proxy: Proxy) -> None:
    assert proxy.get() == (200, BLOB, "")
    assert proxy.get(MANIFEST, "HEAD") == (200, b"", "")
    # Poll, because the client gets the last byte before the proxy records it as sent.
    end = time.monotonic() + 5
    while True:
        last = json.loads(proxy.call("GET", "/requests"))[-2:]
        if all(each["ended"] for each in last) or time.monotonic() > end:
            break
    assert [(r["method"], r["operation"], r["status"], r["sent"]) for r in last] == [
        ("GET", "blob", 200, len(BLOB)),
        ("HEAD", "manifest", 200, 0),
    ]
    assert {r["repository"] for r in last} == {"team/app"}


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_status_fault_applies_to_matching_requests_the_given_number_of_times(
    proxy: Proxy, status: int
) -> None:
    proxy.fault(str(status), operation="manifest", repository="team/*", times=2)
    assert [proxy.get(MANIFEST)[0] for _ in range(3)] == [status, status, 200]
    proxy.fault(str(status), operation="manifest", repository="other")
    assert proxy.get(MANIFEST)[0] == 200
    assert proxy.get(LAYER)[0] == 200


@pytest.mark.parametrize(
    ("kind", "end"), [("reset", "ConnectionResetError"), ("truncated", "short")]
)
def test_broken_transfer_ends_at_half_and_cannot_be_resumed(
    proxy: Proxy, kind: str, end: str
) -> None:
    proxy.fault(kind)
    assert proxy.get() == (200, HALF, end)
    resumed = proxy.get(begin=len(HALF))
    assert (resumed[0], resumed[1]) in ((206, b""), (0, b""))
    assert proxy.get(method="HEAD")[0] == 0


def test_stall_lasts_until_it_is_cleared(proxy: Proxy) -> None:
    proxy.fault("stall", after_bytes=1000)
    assert proxy.get(timeout=0.5) == (200, BLOB[:1000], "TimeoutError")
    threading.Timer(0.3, lambda: proxy.call("DELETE", "/faults")).start()
    assert proxy.get() == (200, BLOB[:1000], "short")
    assert proxy.get() == (200, BLOB, "")


def test_corrupt_fault_changes_exactly_one_byte(proxy: Proxy) -> None:
    proxy.fault("corrupt")
    status, body, end = proxy.get()
    assert (status, len(body), end) == (200, len(BLOB), "")
    assert sum(a != b for a, b in zip(body, BLOB, strict=True)) == 1


def test_shorter_body_is_complete_and_does_not_use_up_the_fault(proxy: Proxy) -> None:
    proxy.fault("truncated", after_bytes=len(BLOB), times=1)
    assert proxy.get() == (200, BLOB, "")
    proxy.fault("truncated", after_bytes=1000, times=1)
    assert [proxy.get()[1] for _ in range(2)] == [BLOB[:1000], BLOB]


def test_slow_fault_limits_the_transfer_rate(proxy: Proxy) -> None:
    proxy.fault("slow", bytes_per_second=len(BLOB) * 2)
    begin = time.monotonic()
    assert proxy.get() == (200, BLOB, "")
    assert 0.4 < time.monotonic() - begin < 2
