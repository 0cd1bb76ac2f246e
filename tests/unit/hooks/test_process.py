"""The whole process that receives push hooks, attacked from loopback."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from prometheus_client import CollectorRegistry

from imagegate import receive
from imagegate.hooks import handover
from imagegate.kube import pushes
from imagegate.kube.pushes import Pushes
from imagegate.metrics import Metrics
from imagegate.runtime.outbox import Outbox
from imagegate.settings import HooksSettings
from tests.cluster import ports
from tests.unit.hooks.test_costs import NUMBERS, peak
from tests.unit.hooks.test_sources import payload
from tests.unit.memory_api import MemoryApi

GRID, QUAY, MINE = "g" * 16, "q" * 16, "m" * 16
SECRET = "a-secret-of-thirty-two-characters"
RECEIVERS = [
    {"name": "grid", "source": "acr-eventgrid", "path": GRID, "secrets": [SECRET]},
    {"name": "quay", "source": "quay", "path": QUAY},
    {"name": "mine", "source": "generic", "path": MINE, "secrets": [SECRET]},
]
PATH = f"{pushes.collection('ns')}/pushes"


async def attack(seconds: float) -> dict[str, Any]:
    """Measures memory growth and the waiting times of valid deliveries during an attack."""
    file = Path(tempfile.mkdtemp()) / "receivers.yaml"
    file.write_text(yaml.safe_dump(RECEIVERS))
    settings = HooksSettings("ns", "pushes", file, *ports.free(2, ports.OTHERS))
    api = MemoryApi()
    api.put(PATH, {"metadata": {"name": "pushes"}})
    client: Any = api
    outbox = Outbox(Pushes(client, "ns", "pushes"))
    metrics = Metrics(CollectorRegistry(), version="1")
    url = f"http://127.0.0.1:{settings.port}/hooks/"
    waits, statuses = [], []
    async with (
        receive.serving(settings, metrics, outbox),
        aiohttp.ClientSession() as session,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=("127.0.0.9", 0))) as mine,
    ):
        headers = {"Authorization": SECRET}
        while not await good(mine, url, headers):
            await asyncio.sleep(0.05)
        before = peak()

        async def large(path: str, **more: str) -> None:
            while True:
                try:
                    async with session.post(url + path, data=NUMBERS, headers=more) as response:
                        await response.read()
                except aiohttp.ClientError:
                    pass

        async def halves(text: bytes) -> None:
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", settings.port)
                    writer.write(text)
                    kept.append(writer)
                except OSError:
                    pass
                await asyncio.sleep(0.005)

        kept: list[asyncio.StreamWriter] = []
        half = f"POST /hooks/{QUAY} HTTP/1.1\r\nHost: h\r\n".encode()
        tasks = [asyncio.create_task(large(GRID)) for _ in range(4)]
        tasks += [asyncio.create_task(large(GRID, Authorization=SECRET)) for _ in range(2)]
        tasks += [asyncio.create_task(large(QUAY)) for _ in range(2)]
        tasks.append(asyncio.create_task(halves(half)))
        tasks.append(
            asyncio.create_task(halves(half + b"Content-Length: 60000\r\n\r\n" + b"x" * 50000))
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            statuses.append(await good(mine, url, headers))
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.05)
        grown = peak() - before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in kept:
            writer.transport.abort()
        while outbox._waiting:
            await asyncio.sleep(0.05)
    entries = handover.decode(pushes.text(api.objects[PATH]))
    return {
        "mib": grown,
        "waits": sorted(waits),
        "refused": statuses.count(False),
        "pushes": sorted({each.told.push.repository for each in entries}),
    }


async def good(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> bool:
    async with session.post(url + MINE, data=payload("generic"), headers=headers) as response:
        return response.status == 202


def main() -> None:
    print(json.dumps(asyncio.run(attack(6.0))))


def test_attack_fills_no_memory_and_blocks_no_valid_sender() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", "from tests.unit.hooks import test_process; test_process.main()"],
        cwd=root,
        env={"PYTHONPATH": f"{root / 'operator'}:{root}"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    waits = found["waits"]
    print(
        f"{found['mib']:.0f} MiB; {len(waits)} good deliveries took"
        f" {waits[len(waits) // 2]:.2f} s, {waits[-1]:.2f} s at most"
    )
    assert found["refused"] == 0
    assert found["pushes"] == ["team/app"]
    # The figures include the attackers and senders, because they run in the same process.
    assert found["mib"] < 128, f"the process grew by {found['mib']:.0f} MiB"
    assert waits[-1] < 3.0, f"a good delivery waited for {waits[-1]:.1f} s"
