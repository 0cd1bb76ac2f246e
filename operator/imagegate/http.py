"""The operator's own HTTP server: ``/healthz``, ``/readyz`` and ``/metrics``.

kopf's liveness endpoint is not used, because it does not notice that a watch has failed.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Check = Callable[[], str | None]
"""Returns None, or a text that says what is wrong."""


def make_app(*, registry: CollectorRegistry, healthy: Check, ready: Check) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        return _answer(healthy())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(ready())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


def _answer(problem: str | None) -> web.Response:
    return (
        web.Response(text="ok\n")
        if problem is None
        else web.Response(status=503, text=problem + "\n")
    )


async def serve(app: web.Application, port: int) -> web.AppRunner:
    """Listen on every address. Raises OSError if the port is in use."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, host=None, port=port).start()
    return runner
