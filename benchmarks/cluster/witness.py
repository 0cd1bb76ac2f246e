"""What the operator is told, and how soon its event loop answers.

A program of its own in the network of the cluster: ``python -m benchmarks.cluster.witness
KUBECONFIG RESULT PORT SECONDS``. It opens the watches that the operator opens and counts their
bytes: neither the API server nor the kernel counts those of one client. And it asks the operator
for /healthz every so many seconds. The handler does almost nothing, so the time until the answer is
the lag of the event loop, and the time until a busy machine runs both processes.

It writes an empty result when it is ready, and the figures at SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp

from benchmarks.cluster.client import Client
from benchmarks.cluster.player import PODS
from benchmarks.report import quantile
from tests.e2e.installation import PULLERS

WATCHED = {
    "nodes": "/api/v1/nodes?",
    "pods": PODS,
    "events": f"/api/v1/namespaces/{PULLERS}/events?fieldSelector=reason%3DPulled",
    "imageprefetches": "/apis/imagegate.dev/v1alpha1/imageprefetches?",
    "nodegates": "/apis/imagegate.dev/v1alpha1/nodegates?",
}


class Witness:
    def __init__(self, client: Client, port: int, period: float) -> None:
        self._client, self._port, self._period = client, port, period
        self._bytes, self._events = Counter[str](), Counter[str]()
        self._lag: list[float] = []
        self._late: list[float] = []
        """Seconds by which this process itself woke up too late."""

    async def watch(self, name: str, path: str, version: str) -> None:
        async for line in self._client.watch(path, version):
            self._bytes[name] += len(line)
            self._events[name] += 1

    async def probe(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                due = time.monotonic() + self._period
                await asyncio.sleep(self._period)
                began = time.monotonic()
                self._late.append(began - due)
                # Connections are refused before the operator starts, and after it was killed.
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with session.get(f"http://127.0.0.1:{self._port}/healthz") as response:
                        await response.read()
                    self._lag.append(time.monotonic() - began)

    def figures(self) -> dict[str, object]:
        def spread(values: list[float]) -> dict[str, float | None]:
            return {
                "p50": quantile(values, 0.5),
                "p99": quantile(values, 0.99),
                "max": max(values, default=None),
            }

        return {
            "bytes": dict(self._bytes),
            "events": dict(self._events),
            "lag": {**spread(self._lag), "probes": len(self._lag)},
            "late": spread(self._late),
        }


async def main(kubeconfig: str, ready: Path, port: str, period: str) -> dict[str, object]:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Client(Path(kubeconfig), "bench-witness", len(WATCHED)) as client:
        witness = Witness(client, int(port), float(period))
        versions = {name: await client.version(path) for name, path in WATCHED.items()}
        tasks = [
            asyncio.create_task(witness.watch(name, path, versions[name]))
            for name, path in WATCHED.items()
        ]
        tasks.append(asyncio.create_task(witness.probe()))
        _touch(ready)
        await stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return witness.figures()


def _touch(path: Path) -> None:
    path.touch()


if __name__ == "__main__":
    _config, _result, *_arguments = sys.argv[1:]
    _figures = asyncio.run(main(_config, Path(_result), *_arguments))
    Path(_result).write_text(json.dumps(_figures), encoding="utf-8")
