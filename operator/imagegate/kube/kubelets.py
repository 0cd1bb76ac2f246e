"""Kubelets, asked directly: how full a node's image file system is.

``/stats/summary`` on the kubelet's own port needs ``nodes/stats`` alone. The API server's proxy to
it would need ``nodes/proxy``, with which one can run commands in any pod.

A kubelet is not trusted: root on a node is the kubelet, and sees the token that it is shown. So the
token is that of an account which may read these figures and nothing else, redirects are not
followed, and an answer costs no more memory and time than `PREFIX` allows.
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
"""As for some seconds after its start."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT = aiohttp.ClientTimeout(total=3.0, sock_connect=2.0)
CONCURRENCY = 32
PREFIX = 512 * 1024
"""Bytes of an answer that are read. The node's own figures come first (pkg/apis/stats/v1alpha1,
Summary): some kilobytes, more only where there are hundreds of network interfaces. Those of its
pods, which may be megabytes, are neither read nor parsed. A thread would not keep the loop free of
a large document: the json module holds the interpreter's lock while it parses."""

_NODE = re.compile(r'\s*\{\s*"node"\s*:\s*')
_DECODER = json.JSONDecoder()


class Kubelets:
    """``tokens``: of the account that may read the figures; None: no kubelet is asked.
    ``ca_file``: who signs the kubelets' serving certificates; default: the cluster's own CA.

    With ``insecure_tls`` anybody may answer, and gets such a token: for clusters whose kubelets
    sign their own certificates, as with metrics-server's ``--kubelet-insecure-tls``.
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
        """The image file system of a node. Never raises: what is wrong stands in ``problem``."""
        if self._tokens is None:
            return NOT_READ
        if not node.address:
            return Usage(problem="the node has no InternalIP")
        try:
            address = ipaddress.ip_address(node.address)
        except ValueError:
            # It goes into a URL, and any string may stand in a Node's status.
            return Usage(problem="the node's InternalIP is no IP address")
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
            # Before SSLError, of which aiohttp's own is one, too.
            return Usage(
                problem="its kubelet's certificate is not signed by the cluster's CA: set the"
                " chart's kubelet.caFile or kubelet.insecureTLS"
            )
        except ssl.SSLError as error:
            return Usage(problem=f"the CA of the kubelets cannot be read: {error}")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            # ValueError: of what cannot be a URL, for instance by its port.
            return Usage(problem=f"its kubelet does not answer: {type(error).__name__}")

    async def _ask(self, origin: str, token: str) -> Usage:
        assert self._tokens is not None
        # Not compressed: a few kilobytes could be a gigabyte.
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
            # One connection a question: thousands of kept ones would be of no use.
            connector = aiohttp.TCPConnector(ssl=context, force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=TIMEOUT,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


async def _prefix(stream: aiohttp.StreamReader) -> bytes:
    """As much as is read of a body. One read gives what has arrived, which may be a part."""
    body = bytearray()
    while len(body) < PREFIX and (chunk := await stream.read(PREFIX - len(body))):
        body += chunk
    return bytes(body)


def parse(body: bytes) -> Usage:
    """``node.runtime.imageFs`` of a summary, or of its beginning; used as the kubelet's collector
    counts it, that is, everything that is not available (pkg/kubelet/images/image_gc_manager.go).
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
        # OverflowError: 1e999 is infinite. RecursionError: ten thousand brackets.
        return NO_FIGURES
    if capacity <= 0:
        return NO_FIGURES
    return Usage(capacity=capacity, used=max(0, capacity - available))
