"""``imagegate hooks``: the process that receives push hooks. Only this process is reachable from
outside of the cluster.

It verifies the deliveries of registries, and hands over (registry, repository, tag) through a
ConfigMap. It knows no node and no ImagePrefetch, and may only read and patch that ConfigMap. So an
attack that ends it, or fills its memory, does not end the process that holds and releases nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry

from imagegate import __version__, http
from imagegate.hooks import connections
from imagegate.hooks.directory import Directory
from imagegate.hooks.endpoint import Endpoint
from imagegate.hooks.fetch import Fetcher
from imagegate.hooks.receiver import PushReceiver
from imagegate.hooks.sources import SOURCES
from imagegate.kube.client import Client
from imagegate.kube.errors import KubeError
from imagegate.kube.pushes import Pushes
from imagegate.metrics import Metrics
from imagegate.runtime.outbox import Outbox
from imagegate.settings import HooksSettings

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 3.0
"""Time to hand over waiting pushes at the end; the pod has 10 s."""


async def run(settings: HooksSettings) -> None:
    """Run until a signal. Raises OSError if a port is in use, and the error of a part that has
    failed.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics(CollectorRegistry(), version=__version__, host="kubernetes")
    client = await Client.connect(user_agent=f"imagegate-hooks/{__version__}", observer=metrics)
    try:
        outbox = Outbox(Pushes(client, settings.namespace, settings.pushes_configmap))
        async with serving(settings, metrics, outbox) as parts:
            waiting = [*parts, asyncio.create_task(stop.wait(), name="stop")]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        with contextlib.suppress(TimeoutError, KubeError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await outbox.flush()
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def serving(
    settings: HooksSettings, metrics: Metrics, outbox: Outbox
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Receive push hooks within this context. Yields the tasks that must not end meanwhile."""
    async with Fetcher(user_agent=f"imagegate/{__version__}") as fetch:
        directory = Directory(settings.file, SOURCES)
        receiver = PushReceiver(
            directory, SOURCES, hand_over=outbox.add, fetch=fetch, observe=metrics.push_event
        )
        endpoint = Endpoint(directory, receiver, SOURCES, metrics.push_event)
        health = http.make_app(registry=metrics.registry, healthy=_fine, ready=_fine)
        parts = [
            asyncio.create_task(receiver.run(), name="receivers"),
            asyncio.create_task(outbox.run(), name="outbox"),
        ]
        async with contextlib.AsyncExitStack() as ports:
            for site in (
                http.serve(health, settings.http_port),
                connections.serve(endpoint.app(), settings.port),
            ):
                ports.push_async_callback((await site).cleanup)
            try:
                yield parts
            finally:
                for task in parts:
                    task.cancel()
                await asyncio.gather(*parts, return_exceptions=True)


def _fine() -> None:
    """Always healthy, because the process exits when a part ends."""
