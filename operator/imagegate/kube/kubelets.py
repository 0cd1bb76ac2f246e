"""Kubelets, asked directly: how full a node's image file system is.

``/stats/summary`` on the kubelet's own port needs ``nodes/stats`` alone. The API server's proxy to
it would need ``nodes/proxy``, with which one can run commands in any pod.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any, Self

import aiohttp

from imagegate.domain.disk import Usage
from imagegate.domain.facts import Node

NO_FIGURES = Usage(problem="its kubelet has no figures of the image file system", passing=True)
"""As for some seconds after its start."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT = aiohttp.ClientTimeout(total=3.0, sock_connect=2.0)
CONCURRENCY = 32
LARGEST = 16 * 1024 * 1024
"""Bytes of an answer that are read: one of 250 pods is half a megabyte."""


class Kubelets:
    """``ca_file``: who signs the kubelets' serving certificates; default: the cluster's own CA.

    With ``insecure_tls`` anybody may answer, and gets the operator's token: for clusters whose
    kubelets sign their own certificates, as with metrics-server's ``--kubelet-insecure-tls``.
    """

    def __init__(
        self,
        *,
        ca_file: str = "",
        insecure_tls: bool = False,
        service_account: Path = SERVICE_ACCOUNT,
    ) -> None:
        self._ca_file = Path(ca_file) if ca_file else service_account / "ca.crt"
        self._insecure = insecure_tls
        self._token_file = service_account / "token"
        self._session: aiohttp.ClientSession | None = None
        self._turn = asyncio.Semaphore(CONCURRENCY)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def usage(self, node: Node) -> Usage:
        """The image file system of a node. Never raises: what is wrong stands in ``problem``."""
        if not node.address:
            return Usage(problem="the node has no InternalIP")
        try:
            # A projected token is renewed every hour: read, not kept.
            token = self._token_file.read_text()
            async with self._turn:
                return await self._ask(node, token)
        except FileNotFoundError:
            return Usage(problem=f"{self._token_file} or {self._ca_file} is not there")
        except aiohttp.ClientSSLError:
            # Before SSLError, of which aiohttp's own is one, too.
            return Usage(
                problem="its kubelet's certificate is not signed by the cluster's CA: set the"
                " chart's kubelet.caFile or kubelet.insecureTLS"
            )
        except ssl.SSLError as error:
            return Usage(problem=f"the CA of the kubelets cannot be read: {error}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Usage(problem=f"its kubelet does not answer: {type(error).__name__}")

    async def _ask(self, node: Node, token: str) -> Usage:
        host = f"[{node.address}]" if ":" in node.address else node.address
        url = f"https://{host}:{node.kubelet_port}/stats/summary"
        session = self._connected()
        async with session.get(url, headers={"Authorization": f"Bearer {token}"}) as answer:
            if answer.status != 200:
                return Usage(
                    problem=f"its kubelet answers {answer.status}: the operator needs nodes/stats",
                    passing=answer.status >= 500,
                )
            body = await answer.content.read(LARGEST)
            return parse(body)

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
            self._session = aiohttp.ClientSession(connector=connector, timeout=TIMEOUT)
        return self._session


def parse(body: bytes) -> Usage:
    """``node.runtime.imageFs`` of a summary; used as the kubelet's collector counts it, that is,
    everything that is not available (pkg/kubelet/images/image_gc_manager.go).
    """
    try:
        summary: Any = json.loads(body)
        image_fs = summary["node"]["runtime"]["imageFs"]
        capacity, available = int(image_fs["capacityBytes"]), int(image_fs["availableBytes"])
    except (ValueError, LookupError, TypeError):
        return NO_FIGURES
    if capacity <= 0:
        return NO_FIGURES
    return Usage(capacity=capacity, used=max(0, capacity - available))
