"""The floor: a bare client plays a plan, with as many connections as the operator has.

A program of its own, so that its CPU time is its own, and because it runs in the network of the
cluster: ``python -m benchmarks.cluster.player KUBECONFIG ADMIN-KUBECONFIG PLAN RESULT``. The
operator's service account makes the operator's writes, so that the same authorization, admission
policies and flow control apply. The administrator creates the joining nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cluster import nodes
from benchmarks.cluster.client import Client
from benchmarks.cluster.plan import Chain, Plan, Slots, Write
from benchmarks.report import quantile
from imagegate.kube.client import CONNECTIONS, PAGE
from imagegate.puller.build import SELECTOR
from tests.e2e.installation import KEY, PULLERS

AGENT = "imagegate-floor"
PODS = f"/api/v1/namespaces/{PULLERS}/pods?labelSelector={SELECTOR.replace('=', '%3D')}"
JOINING = f"{nodes.PATH}?labelSelector={nodes.JOINING.replace('/', '%2F')}%3Dtrue"
TRIES = 10
_TAINT = re.compile("/spec/taints/[0-9]+")
_CONTINUE = re.compile(rb'"continue":"([^"]+)"')


class Player:
    def __init__(self, plan: Plan, client: Client, administrator: Client) -> None:
        self._plan, self._client, self._administrator = plan, client, administrator
        self._pods: dict[str, asyncio.Event] = {
            write.pod: asyncio.Event() for write in plan if write.pod
        }
        self._succeeded_at: dict[str, float] = {}
        self._joined: dict[str, asyncio.Event] = {
            chain.node: asyncio.Event() for chain in plan.chains if chain.joins
        }
        self._nodes: dict[str, tuple[str, int]] = {}
        """The uid of each joining node, and the index of the gate's taint."""
        self._slots = Slots(plan.rollout, plan.zones)
        self._succeeded = self._done = 0
        self._refused = Counter[str]()
        self._gone: list[float] = []
        """Seconds from the success of a joining node's pod until its taint was removed."""

    async def play(self) -> dict[str, Any]:
        """The figures: when the last answer came, and what was refused."""
        async with (
            _watching(self._client, PODS, self._pod),
            _watching(self._administrator, JOINING, self._node),
        ):
            began, cpu = time.monotonic(), time.process_time()
            for path in self._plan.lists:
                await self._list(path)
            async with asyncio.TaskGroup() as self._group:
                for chain in self._plan.chains:
                    if chain.joins:
                        self._group.create_task(self._join(chain))
                    else:
                        self._slots.add(chain)
                self._start()
                self._group.create_task(self._others())
                self._group.create_task(self._create_nodes())
            seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        return {
            "seconds": seconds,
            "cpu": cpu,
            "writes": self._done,
            "refused": dict(self._refused),
            "gone": {"p50": quantile(self._gone, 0.5), "p99": quantile(self._gone, 0.99)},
        }

    # ---- chains

    def _start(self) -> None:
        for chain in self._slots.start():
            self._group.create_task(self._run(chain))

    async def _run(self, chain: Chain) -> None:
        """The writes about one node."""
        pods: list[str] = []
        waited = False
        for write in chain.writes:
            if write.pod:
                pods.append(write.pod)
            elif pods and not waited:
                await self._wait(chain, pods)
                waited = True
            if not chain.joins:
                await self._send(write)
                continue
            await self._send_joining(chain, write)
            if write.method == "PATCH" and waited:
                self._gone.append(time.monotonic() - self._succeeded_at[pods[-1]])
        if pods and not waited:
            await self._wait(chain, pods)

    async def _send_joining(self, chain: Chain, write: Write) -> None:
        """A write about a node that has joined: with its uid, and the place of its taint."""
        for _ in range(TRIES):
            uid, taint = self._nodes[chain.node]
            body = write.body.replace(chain.uid, uid)
            own = replace(write, body=_TAINT.sub(f"/spec/taints/{taint}", body))
            if await self._client.send(own) != 422:
                self._done += 1
                return
            # The controller manager has removed another taint meanwhile.
            await asyncio.sleep(0.02)
        self._done += 1
        self._refused[f"{write.method} 422"] += 1

    async def _wait(self, chain: Chain, pods: list[str]) -> None:
        for pod in pods:
            await self._pods[pod].wait()
        if not chain.joins:
            self._slots.succeeded(chain)
            self._start()

    async def _join(self, chain: Chain) -> None:
        await self._joined[chain.node].wait()
        await self._run(chain)

    async def _create_nodes(self) -> None:
        joining = self._plan.joining
        if joining is None:
            return
        while self._succeeded < joining.after:
            await asyncio.sleep(0.01)
        numbers = range(*joining.numbers)
        await nodes.join(self._administrator, numbers, joining.seconds, joining.taint)

    # ---- the rest

    async def _others(self) -> None:
        for before, write in self._plan.others:
            while self._done < before:
                await asyncio.sleep(0.01)
            await self._send(write)

    async def _list(self, path: str) -> None:
        """Every page, without a parser."""
        mark, token = "&" if "?" in path else "?", ""
        while True:
            more = f"&continue={token}" if token else ""
            page = await self._client.get(f"{path}{mark}limit={PAGE}{more}")
            found = _CONTINUE.search(page[:4096])
            if found is None:
                return
            token = found[1].decode()

    async def _send(self, write: Write) -> None:
        status = await self._client.send(write)
        self._done += 1
        if status >= 400:
            self._refused[f"{write.method} {status}"] += 1

    # ---- watches

    def _pod(self, line: bytes) -> None:
        if b'"phase":"Succeeded"' not in line or line.startswith(b'{"type":"DELETED"'):
            return
        name = json.loads(line)["object"]["metadata"]["name"]
        event = self._pods.get(name)
        if event is not None and not event.is_set():
            self._succeeded += 1
            self._succeeded_at[name] = time.monotonic()
            event.set()

    def _node(self, line: bytes) -> None:
        body = json.loads(line)["object"]
        metadata = body["metadata"]
        if metadata["name"] not in self._joined:
            return
        keys = [taint["key"] for taint in body["spec"].get("taints") or ()]
        self._nodes[metadata["name"]] = metadata["uid"], keys.index(KEY) if KEY in keys else 0
        if any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in body["status"].get("conditions") or ()
        ):
            self._joined[metadata["name"]].set()


@contextlib.asynccontextmanager
async def _watching(client: Client, path: str, tell: Any) -> AsyncIterator[None]:
    version = await client.version(path)

    async def watch() -> None:
        async for line in client.watch(path, version):
            tell(line)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def main(kubeconfig: str, admin: str, plan: str) -> dict[str, Any]:
    async with (
        Client(Path(kubeconfig), AGENT, CONNECTIONS) as client,
        Client(Path(admin), "bench-kubelets", nodes.CONNECTIONS) as administrator,
    ):
        return await Player(Plan.load(Path(plan)), client, administrator).play()


if __name__ == "__main__":
    *arguments, result = sys.argv[1:]
    Path(result).write_text(json.dumps(asyncio.run(main(*arguments))), encoding="utf-8")
