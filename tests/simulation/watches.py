"""kopf's watches: list, then watch, separately for each kind (kopf/_cogs/clients/watching.py).

They have the same gaps as kopf's. After a 410 they list again, and do not report objects that were
deleted meanwhile. A refused list or watch ends the operator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import kopf

from imagegate import handlers
from imagegate.handlers import Sightings
from tests.simulation.apiserver import ApiServer, Refused
from tests.simulation.transport import Network, Stream

RECONNECT = 0.1
CHUNK = 500

Tell = Callable[[str | None, dict[str, Any]], None]


class WatchingError(Exception):
    """Ends kopf, and so the operator."""


def kinds() -> frozenset[str]:
    """The plurals of the kinds that the operator watches with kopf."""
    registry = kopf.OperatorRegistry()
    sightings: Any = None
    handlers.register(registry, sightings)
    return frozenset(
        str(handler.selector.plural or handler.selector.any_name)
        for handler in registry._watching.get_all_handlers()
        if handler.selector is not None
    )


class Kopf:
    """Replaces `handlers.watch`."""

    def __init__(self, server: ApiServer, network: Network, actor: str) -> None:
        self._server, self._network, self._actor = server, network, actor
        self.frozen: Callable[[], float] = lambda: 0.0

    async def __call__(
        self, sightings: Sightings, namespaces: Sequence[str], identity: str
    ) -> None:
        tells: dict[str, Tell] = {
            "imageprefetches": sightings.prefetch,
            "nodegates": sightings.gate,
        }
        assert tells.keys() == kinds(), "other watches are reflectors, which are not simulated"
        async with asyncio.TaskGroup() as group:
            for resource, tell in tells.items():
                group.create_task(self._follow(resource, tell))

    async def _follow(self, resource: str, tell: Tell) -> None:
        while True:
            try:
                await self._list_and_watch(resource, tell)
            except (aiohttp.ClientError, TimeoutError):
                pass
            except Refused as refused:
                if refused.status not in (410, 429):
                    raise WatchingError(f"{resource}: {refused}") from refused
            await asyncio.sleep(RECONNECT)

    async def _reach(self) -> None:
        await asyncio.sleep(self._network.one_way() + self.frozen())
        if self._network.away:
            await asyncio.sleep(1.0)
            raise aiohttp.ClientConnectionError

    async def _list_and_watch(self, resource: str, tell: Tell) -> None:
        await self._reach()
        more, version = "", ""
        while True:
            page, version_, more = self._server.listed(
                self._actor, resource, "", {"limit": str(CHUNK), "continue": more}
            )
            version = version or version_
            if self._network.slow_lists:
                await asyncio.sleep(self._network.rng.expovariate(1 / self._network.slow_lists))
            await asyncio.sleep(self._network.one_way())
            for stored in page:
                tell(None, stored.body)
            if not more:
                break
        while True:
            stream = Stream(
                self._server,
                self._network,
                self._actor,
                resource,
                "",
                {"resourceVersion": version, "timeoutSeconds": "300"},
            )
            try:
                async for change in stream.changes():
                    if change is None:
                        version = str(self._server.version)
                        continue
                    if delay := self.frozen():
                        await asyncio.sleep(delay)
                    version = str(change.version)
                    tell(change.type, change.stored.body)
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(RECONNECT)
            await self._reach()
