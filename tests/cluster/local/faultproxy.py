"""A registry with faults on request: a read-only proxy in front of a correct registry.

A separate program, standard library only:
`faultproxy.py UPSTREAM HTTP HTTPS CONTROL CERTIFICATE KEY`, the first four as ADDRESS:PORT. Faults
are set on the control port (see `faulty.py`): POST /faults adds a fault, DELETE /faults removes all
faults, GET /requests returns every request so far. All other paths of the control port lead to the
correct registry, without faults and without a record of the request.
"""

import fnmatch
import http.client
import json
import re
import select
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.parse
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_CHUNK = 64 * 1024
_SCOPE = re.compile(r"[?&]scope=repository:([^&]+):pull")
_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<operation>manifests|blobs)/[^/]+$")
_ERRORS = {
    401: ("UNAUTHORIZED", "authentication required"),
    403: ("DENIED", "requested access to the resource is denied"),
    404: ("MANIFEST_UNKNOWN", "manifest unknown"),
    429: ("TOOMANYREQUESTS", "rate limit exceeded"),
}
_HEADERS = {401: {"WWW-Authenticate": 'Basic realm="faulty"'}, 429: {"Retry-After": "1"}}


@dataclass
class Fault:
    """A fault: its kind, the requests that it applies to, and how often."""

    kind: str  # an HTTP status, or reset, stall, truncated, corrupt, slow
    repository: str = "*"
    operation: str = "any"  # manifest, blob, token, any
    times: int | None = None  # number of requests it applies to; None: until cleared
    after_bytes: int | None = None  # of the manifest or blob; None: half of it
    bytes_per_second: int = _CHUNK
    headers: dict[str, str] = field(default_factory=dict)

    def matches(self, request: "Request", size: int) -> bool:
        """`size` is the size of the content in bytes. A fault beyond its end does not apply."""
        return (
            self.times != 0
            and self.operation in ("any", request.operation)
            and fnmatch.fnmatchcase(request.repository, self.repository)
            and (self.after_bytes is None or self.after_bytes < size)
        )

    def where(self, size: int) -> int:
        return size // 2 if self.after_bytes is None else self.after_bytes


@dataclass
class Request:
    """One request of a client, and how it ended."""

    at: float  # seconds since the epoch
    client: str
    method: str
    path: str
    repository: str = ""
    operation: str = ""
    status: int | None = None  # None: no status was sent
    sent: int = 0  # bytes of the body
    fault: str = ""
    ended: float | None = None


class Faults:
    """The active faults and the recorded requests, shared by all connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self.requests: list[Request] = []
        self.cleared = threading.Event()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Removes all faults and closes stalled connections."""
        with self._lock:
            self._faults.clear()
            self.cleared.set()
            self.cleared = threading.Event()

    def of(self, request: Request, size: int = 0) -> Fault | None:
        """Records the request. Returns the newest matching fault and reduces its `times`."""
        with self._lock:
            self.requests.append(request)
            for fault in reversed(self._faults):
                if fault.matches(request, size):
                    if fault.times is not None:
                        fault.times -= 1
                    request.fault = fault.kind
                    return fault
        return None


class Hangup(Exception):
    """Ends this connection in the middle of a response."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    upstream: str

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        asked = Request(time.time(), self.client_address[0], self.command, self.path)
        if found := _PATH.match(path):
            asked.repository = found["repository"]
            asked.operation = found["operation"].removesuffix("s")
        elif path == "/token":
            asked.operation = "token"
            if found := _SCOPE.search(urllib.parse.unquote(self.path)):
                asked.repository = found[1]
        try:
            if asked.operation == "token":
                if not self._refuse(asked, self.faults.of(asked)):
                    self._send(asked, 200, {}, b'{"token": "a-token"}')
            else:
                self._proxy(asked)
        except (Hangup, OSError):
            self.close_connection = True
        finally:
            asked.ended = time.time()
            print(json.dumps(asdict(asked)), flush=True)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _refuse(self, asked: Request, fault: Fault | None) -> bool:
        """Sends the fault's HTTP status, if it has one. Returns whether it did."""
        if not fault or not fault.kind.isdecimal():
            return False
        status = int(fault.kind)
        code, message = _ERRORS.get(status, ("UNKNOWN", http.client.responses.get(status, "")))
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self._send(asked, status, _HEADERS.get(status, {}) | fault.headers, body)
        return True

    def _send(self, asked: Request, status: int, headers: dict[str, str], body: bytes) -> None:
        asked.status = status
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            asked.sent = len(body)

    def _proxy(self, asked: Request, *, spoil: bool = True) -> None:
        """Forwards the correct registry's response, changed by a fault if one applies."""
        cleared = self.faults.cleared
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        try:
            names = ("Accept", "Range", "Authorization")
            headers = {name: self.headers[name] for name in names if name in self.headers}
            connection.request(self.command, self.path, headers=headers)
            response = connection.getresponse()
            length, begin, size = _extent(response)
            fault = self.faults.of(asked, size) if spoil else None
            if self._refuse(asked, fault):
                return
            end = size
            if fault and fault.kind in ("reset", "stall", "truncated"):
                end = fault.where(size)
                if self.command == "HEAD" or end == 0:
                    self._break(fault, cleared)
            asked.status = response.status
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("connection", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            at, step = begin, _CHUNK
            if fault and fault.kind == "slow":
                step = min(_CHUNK, max(1, fault.bytes_per_second // 10))
            while at < begin + length:
                data = response.read(min(step, begin + length - at, max(0, end - at)))
                if not data:
                    break
                if fault and fault.kind == "corrupt" and at <= fault.where(size) < at + len(data):
                    spoilt = bytearray(data)
                    spoilt[fault.where(size) - at] ^= 0xFF
                    data = bytes(spoilt)
                if (
                    fault
                    and fault.kind == "slow"
                    and cleared.wait(len(data) / fault.bytes_per_second)
                ):
                    fault = None  # send the rest at full speed
                self.wfile.write(data)
                at += len(data)
                asked.sent += len(data)
            if fault and at < begin + length:
                self._break(fault, cleared)
        finally:
            connection.close()

    def _break(self, fault: Fault, cleared: threading.Event) -> None:
        """Ends the response in the way of the fault."""
        self.wfile.flush()
        if fault.kind == "stall":
            while not cleared.wait(0.2):
                readable, _, _ = select.select([self.connection], [], [], 0)
                if readable and not self.connection.recv(1, socket.MSG_PEEK):
                    break  # the client has closed the connection
        if fault.kind == "reset":
            time.sleep(0.05)  # let the client receive the data before the RST discards it
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # Detach the socket and only close it, because the server's shutdown() would send a FIN.
            socket.close(self.connection.detach())
        raise Hangup

    def log_message(self, *_: object) -> None:
        """Logs nothing, because the log has a line per request already."""


class Control(Handler):
    def do_GET(self) -> None:
        if self.path == "/requests":
            self._reply([asdict(each) for each in list(self.faults.requests)])
        else:
            ignored = Request(time.time(), self.client_address[0], self.command, self.path)
            self._proxy(ignored, spoil=False)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.faults.add(Fault(**json.loads(body)))
        self._reply({})

    def do_DELETE(self) -> None:
        if self.path == "/faults":
            self.faults.clear()
            self._reply({})
        else:
            self.do_GET()

    def _reply(self, content: object) -> None:
        ignored = Request(time.time(), "", self.command, self.path)
        self._send(ignored, 200, {}, json.dumps(content).encode())


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores the error, because tests make clients disconnect or refuse the certificate."""

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        if request.fileno() != -1:
            super().shutdown_request(request)


class TlsServer(Server):
    context: ssl.SSLContext

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Does the TLS handshake in the connection's thread, so that it delays no other client."""
        wrapped = self.context.wrap_socket(request, server_side=True)
        try:
            super().finish_request(wrapped, client_address)
        finally:
            if wrapped.fileno() != -1:
                wrapped.close()


def _extent(response: http.client.HTTPResponse) -> tuple[int, int, int]:
    """The length of this body, its offset in the whole content, and the length of the whole."""
    length = int(response.headers.get("Content-Length", 0))
    if found := re.match(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "")):
        return length, int(found[1]), int(found[2])
    return length, 0, length


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def serve(upstream: str, plain: str, tls: str, control: str, certificate: str, key: str) -> None:
    faults = Faults()
    shared = {"faults": faults, "upstream": upstream}
    handler = type("SharedHandler", (Handler,), shared)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secure = TlsServer(_address(tls), handler)
    secure.context = context
    servers = [Server(_address(plain), handler), secure]
    servers.append(Server(_address(control), type("SharedControl", (Control,), shared)))
    for server in servers[:-1]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[-1].serve_forever()


if __name__ == "__main__":
    serve(*sys.argv[1:])
