"""``imagegate run``: the operator's process from start to end.

It is a standby until it is elected; then `app` leads. When leadership is lost, the process exits,
because it must not act without being sure that it leads, and a restart leaves no stale state.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable

from imagegate import __version__, http
from imagegate.app import App, Outside
from imagegate.errors import ImagegateError
from imagegate.kube.client import CONNECTIONS, Client
from imagegate.kube.kubelets import Kubelets
from imagegate.kube.leases import Leases
from imagegate.kube.tokens import Tokens
from imagegate.registry import client as registry
from imagegate.registry.manifests import Manifests
from imagegate.runtime.clock import Clock, ServerTime
from imagegate.runtime.election import Elector
from imagegate.runtime.process import Process, collect_less
from imagegate.runtime.tasks import first_of, spawn
from imagegate.settings import Settings


class LeadershipLost(ImagegateError):
    pass


async def run(settings: Settings) -> None:
    """Run the process until a signal. Raises LeadershipLost when it must be restarted."""
    collect_less()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server_time = ServerTime()
    process = Process.create(Clock(now=server_time.now), version=__version__, host="kubernetes")
    async with _connected(settings, process, server_time) as outside:
        leases = Leases(outside.api, settings.namespace, settings.lease_name)
        elector = Elector(leases, settings.identity, process.clock, process.leadership)
        app = App(settings, process, outside)
        site = await http.serve(
            http.make_app(registry=process.metrics.registry, healthy=app.healthy, ready=app.ready),
            settings.http_port,
        )
        try:
            await campaign(app, elector, stop)
        finally:
            await elector.release()
            await site.cleanup()


async def campaign(app: App, elector: Elector, stop: asyncio.Event) -> None:
    """Stand by until elected, then lead until ``stop``. Raises LeadershipLost, and the error of a
    part that has failed.
    """
    await first_of([spawn(elector.acquire(), "elect"), spawn(stop.wait(), "stop")])
    if stop.is_set():
        return
    # From now on kopf handles the signals, and ends when the process gets a signal.
    hold, lead = spawn(elector.hold(), "hold"), spawn(app.lead(), "lead")
    await first_of([hold, lead, spawn(stop.wait(), "stop")])
    if not elector.leading:
        raise LeadershipLost("leadership was lost; the process must start again")


@contextlib.asynccontextmanager
async def _connected(
    settings: Settings, process: Process, server_time: ServerTime
) -> AsyncIterator[Outside]:
    """The connections of the process, closed at the end."""
    tokens = settings.kubelet_account
    async with (
        _client(process, server_time, recovered=process.queues.kick) as api,
        _client(process, server_time, connections=0) as watching,
        registry.Client(settings.registry, observer=process.metrics) as registries,
        Kubelets(
            Tokens(api, settings.namespace, tokens) if tokens else None,
            ca_file=settings.kubelet_ca_file,
            insecure_tls=settings.kubelet_insecure_tls,
        ) as kubelets,
    ):
        yield Outside(api, watching, Manifests(registries), kubelets)


@contextlib.asynccontextmanager
async def _client(
    process: Process,
    server_time: ServerTime,
    *,
    connections: int = CONNECTIONS,
    recovered: Callable[[], None] = lambda: None,
) -> AsyncIterator[Client]:
    client = await Client.connect(
        user_agent=f"imagegate/{__version__}",
        fence=process.leadership.fence,
        observer=process.metrics,
        time_observer=server_time,
        connections=connections,
        recovered=recovered,
    )
    try:
        yield client
    finally:
        await client.close()
