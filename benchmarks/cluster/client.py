"""A bare client of the API server: aiohttp, without models, retries and parsing."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import ssl
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

from benchmarks.cluster.plan import Write

JSON = "application/json"
_VERSION = re.compile(rb'"resourceVersion":"([0-9]+)"')


class Client:
    """Requests as the user of a kubeconfig; at most ``connections`` at a time, without watches."""

    def __init__(self, kubeconfig: Path, agent: str, connections: int) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server: str = cluster["server"]
        self._ssl = _context(cluster, user)
        self._headers = {"User-Agent": agent, "Accept": JSON}
        if token := user.get("token"):
            self._headers["Authorization"] = f"Bearer {token}"
        self._free = asyncio.Semaphore(connections)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def send(self, write: Write) -> int:
        """The status of the answer, whose body is read and not parsed."""
        async with (
            self._free,
            self._session.request(
                write.method,
                self._server + write.path,
                data=write.body,
                headers={"Content-Type": write.content_type},
            ) as response,
        ):
            await response.read()
            return response.status

    async def get(self, path: str) -> bytes:
        async with self._free, self._session.get(self._server + path) as response:
            response.raise_for_status()
            return await response.read()

    async def version(self, path: str) -> str:
        """The resourceVersion of a collection now. ``path`` has a query."""
        page: dict[str, Any] = json.loads(await self.get(f"{path}&limit=1"))
        return str(page["metadata"]["resourceVersion"])

    async def watch(self, path: str, version: str) -> AsyncGenerator[bytes]:
        """The lines of a watch, without an end. ``path`` has a query.

        A busy API server ends the watches of clients that it takes for slow. The next watch
        continues after the last object.
        """
        while True:
            query = f"&watch=true&resourceVersion={version}&timeoutSeconds=3600"
            url = self._server + path + query
            with contextlib.suppress(aiohttp.ClientPayloadError):
                async with self._session.get(url, read_bufsize=2**20) as response:
                    response.raise_for_status()
                    async for line in response.content:
                        if line.startswith(b'{"type":"ERROR"'):
                            raise SystemExit(line.decode())
                        if not line.endswith(b"\n"):
                            break
                        found = _VERSION.search(line)
                        version = found[1].decode() if found else version
                        yield line


def _context(cluster: dict[str, str], user: dict[str, str]) -> ssl.SSLContext:
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    if "client-certificate-data" in user:
        # `ssl` reads certificates from files only.
        with tempfile.NamedTemporaryFile() as file:
            for part in ("client-certificate-data", "client-key-data"):
                file.write(base64.b64decode(user[part]))
            file.flush()
            context.load_cert_chain(file.name)
    return context
