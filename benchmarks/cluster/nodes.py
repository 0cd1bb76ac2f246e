"""Simulated nodes that look like real ones: created, deleted, and reporting their status.

A program of its own, because it runs in the network of the cluster:
``python -m benchmarks.cluster.nodes KUBECONFIG create|delete|beat|join FIRST END [SECONDS]``
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import objects
from benchmarks.cluster.client import Client
from benchmarks.cluster.plan import Write
from tests.cluster.local.kwok import SELECTOR

CONNECTIONS = 32
PATH = "/api/v1/nodes"
JOINING = "bench.test/joining"
"""A label of nodes that join while something is measured."""
HEARTBEAT = 300.0
"""Seconds between two status updates of a kubelet that has nothing to report."""
STRATEGIC = "application/strategic-merge-patch+json"


def zones(numbers: range) -> dict[str, int]:
    """How many of these nodes each zone has."""
    found = dict.fromkeys(objects.ZONES, 0)
    for number in numbers:
        found[zone(number)] += 1
    return found


def zone(number: int) -> str:
    return objects.ZONES[number % len(objects.ZONES)]


def creation(number: int, *, taint: str = "", joining: bool = False) -> Write:
    """The request with which a kubelet registers its node. A joining node is not Ready at first.

    The API server writes the managed fields, as it does for real kubelets.
    """
    body = objects.node(number, _now(), ready=not joining)
    del body["metadata"]["managedFields"]
    body["metadata"]["labels"][SELECTOR] = "true"
    if joining:
        body["metadata"]["labels"][JOINING] = "true"
    if taint:
        body["spec"]["taints"] = [{"key": taint, "value": "pending", "effect": "NoSchedule"}]
    return Write("POST", f"{PATH}?fieldManager=kubelet", json.dumps(body))


def _heartbeat(number: int) -> Write:
    conditions = [
        {"type": condition["type"], "lastHeartbeatTime": _now()}
        for condition in objects.conditions(_now(), _now(), ready=True)
    ]
    body = json.dumps({"status": {"conditions": conditions}})
    path = f"{PATH}/{objects.name(number)}/status?fieldManager=kubelet"
    return Write("PATCH", path, body, STRATEGIC)


async def _each(numbers: range, do: Callable[[int], Awaitable[int]]) -> None:
    for status in await asyncio.gather(*map(do, numbers)):
        if status >= 400 and status != 404:
            raise SystemExit(f"HTTP {status} for a Node")


async def _beat(client: Client, numbers: range, seconds: float) -> None:
    """Every node reports once in `HEARTBEAT` seconds, spread evenly."""
    loop = asyncio.get_running_loop()
    began, done = loop.time(), 0
    async with asyncio.TaskGroup() as group:
        while (elapsed := loop.time() - began) < seconds:
            due = int(elapsed * len(numbers) / HEARTBEAT)
            for beat in range(done, due):
                number = numbers[beat % len(numbers)]
                group.create_task(client.send(_heartbeat(number)))
            done = due
            await asyncio.sleep(0.1)


async def join(client: Client, numbers: range, seconds: float, taint: str = "") -> None:
    """Nodes join one after the other. Without ``taint``, the admission policy taints them."""
    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(client.send(creation(number, taint=taint, joining=True)))
            await asyncio.sleep(seconds / len(numbers))


async def main(arguments: list[str]) -> None:
    kubeconfig, what, first, end, *seconds = arguments
    numbers = range(int(first), int(end))
    async with Client(Path(kubeconfig), "bench-kubelets", CONNECTIONS) as client:
        if what == "create":
            await _each(numbers, lambda number: client.send(creation(number)))
        elif what == "delete":
            await _each(
                numbers,
                lambda number: client.send(Write("DELETE", f"{PATH}/{objects.name(number)}")),
            )
        elif what == "join":
            await join(client, numbers, float(seconds[0]))
        else:
            await _beat(client, numbers, float(seconds[0]))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
