"""Requests to kubelets: how full a node's image file system is.

``/stats/summary`` on the kubelet's own port needs only ``nodes/stats``. The API server's proxy to
the kubelet would need ``nodes/proxy``, which allows commands in any pod.

A kubelet is not trusted, because root on a node can read every token that the kubelet receives. So
the token belongs to an account that may read these figures and nothing else, redirects are not
followed, and `PREFIX` limits the memory and time for an answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import ssl
from pathlib import Path
from typing import Any, Self

import aiohttp

from imagegate.domain.disk import NOT_READ, Usage
from imagegate.domain.facts import Node
from imagegate.errors import ImagegateError
from imagegate.kube.errors import Unavailable
from imagegate.kube.tokens import Tokens

NO_FIGURES = Usage(problem="its kubelet has no figures of the image file system", passing=True)
"""Usual for some seconds after the kubelet's start."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT = aiohttp.ClientTimeout(total=3.0, sock_connect=2.0)
CONCURRENCY = 32
PREFIX = 512 * 1024
"""Bytes of an answer that are read. The node's own figures come first (pkg/apis/stats/v1alpha1,
Summary): some kilobytes, more only with hundreds of network interfaces. The figures of the pods may
be megabytes, and are neither read nor parsed. Parsing them in a thread would still block the event
loop, because the json module holds the interpreter's lock."""

_NODE = re.compile(r'\s*\{\s*"node"\s*:\s*')
_DECODER = json.JSONDecoder()


class Kubelets:
    """``tokens``: tokens of the account that may read the figures; None: no kubelet is asked.
    ``ca_file``: the CA of the kubelets' serving certificates; default: the cluster's own CA.

    ``insecure_tls`` is for clusters whose kubelets sign their own certificates, as metrics-server's
    ``--kubelet-insecure-tls``. Any host on the path may then answer, and gets such a token.
    """

    def __init__(
        self,
        tokens: Tokens | None = None,
        *,
        ca_file: str = "",
        insecure_tls: bool = False,
        service_account: Path = SERVICE_ACCOUNT,
    ) -> None:
        self._tokens = tokens
        self._ca_file = Path(ca_file) if ca_file else service_account / "ca.crt"
        self._insecure = insecure_tls
        self._session: aiohttp.ClientSession | None = None
        self._turn = asyncio.Semaphore(CONCURRENCY)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def usage(self, node: Node) -> Usage:
        """The usage of a node's image file system. Never raises; ``problem`` has the error."""
        if self._tokens is None:
            return NOT_READ
        if not node.address:
            return Usage(problem="the node has no InternalIP")
        try:
            address = ipaddress.ip_address(node.address)
        except ValueError:
            # The address becomes part of a URL, and a Node's status may contain any text.
            return Usage(problem="the node's InternalIP is not an IP address")
        host = f"[{address}]" if address.version == 6 else str(address)
        try:
            token = await self._tokens.get()
        except ImagegateError as error:
            return Usage(
                problem=f"no token to ask its kubelet with: {error}",
                passing=isinstance(error, Unavailable),
            )
        try:
            async with self._turn:
                return await self._ask(f"https://{host}:{node.kubelet_port}", token)
        except FileNotFoundError:
            return Usage(problem=f"{self._ca_file} is not there")
        except aiohttp.ClientSSLError:
            # Must come before SSLError, because aiohttp's error is a subclass of it.
            return Usage(
                problem="its kubelet's certificate is not signed by the cluster's CA: set the"
                " chart's kubelet.caFile or kubelet.insecureTLS"
            )
        except ssl.SSLError as error:
            return Usage(problem=f"the CA of the kubelets cannot be read: {error}")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            # ValueError: the URL is not valid, for instance because of the port.
            return Usage(problem=f"its kubelet does not answer: {type(error).__name__}")

    async def _ask(self, origin: str, token: str) -> Usage:
        assert self._tokens is not None
        # Refuse compression, because a few kilobytes could decompress to a gigabyte.
        headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
        async with self._connected().get(
            f"{origin}/stats/summary", headers=headers, allow_redirects=False
        ) as answer:
            match answer.status:
                case 200:
                    return parse(await _prefix(answer.content))
                case 401:
                    self._tokens.refused(token)
                    return Usage(problem="its kubelet refuses the token (401)", passing=True)
                case 403:
                    return Usage(problem="its kubelet answers 403: nodes/stats is not allowed")
                case status if 300 <= status < 400:
                    return Usage(
                        problem=f"its kubelet answers with a redirect ({status}), which no kubelet"
                        " does and which is not followed: look at what listens on its port"
                    )
                case status:
                    return Usage(problem=f"its kubelet answers {status}", passing=status >= 500)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = ssl.create_default_context(
                cafile=None if self._insecure else str(self._ca_file)
            )
            if self._insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            # One connection per request: keeping thousands of connections open has no use.
            connector = aiohttp.TCPConnector(ssl=context, force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=TIMEOUT,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


async def _prefix(stream: aiohttp.StreamReader) -> bytes:
    """The first `PREFIX` bytes of a body. Reads in a loop, because one read may return less."""
    body = bytearray()
    while len(body) < PREFIX and (chunk := await stream.read(PREFIX - len(body))):
        body += chunk
    return bytes(body)


def parse(body: bytes) -> Usage:
    """``node.runtime.imageFs`` of a summary, or of its beginning. Used space is capacity minus
    available space, as in the kubelet's garbage collection
    (pkg/kubelet/images/image_gc_manager.go).
    """
    text = body.decode(errors="replace")
    begin = _NODE.match(text)
    if begin is None:
        return NO_FIGURES
    try:
        node: Any = _DECODER.raw_decode(text, begin.end())[0]
        image_fs = node["runtime"]["imageFs"]
        capacity, available = int(image_fs["capacityBytes"]), int(image_fs["availableBytes"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        # OverflowError: a number such as 1e999. RecursionError: thousands of nested brackets.
        return NO_FIGURES
    if capacity <= 0:
        return NO_FIGURES
    return Usage(capacity=capacity, used=max(0, capacity - available))
