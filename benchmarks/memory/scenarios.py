"""The scenarios of the benchmark, and the figures that they measure."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import objects
from benchmarks.memory.cluster import Api, Kubelets
from benchmarks.memory.meter import Meter, Seconds
from benchmarks.memory.process import Counts, Operator
from benchmarks.report import quantile
from imagegate.domain.facts import Prefetch
from imagegate.kube.prefetches import Reader
from tests.simulation import loop
from tests.simulation.apiserver import Request
from tests.simulation.machines import Registry
from tests.simulation.replica import NAMESPACE
from tests.simulation.transport import Network

KEY = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
JOINING = 500
PATIENCE = 4 * 3600.0
"""Virtual seconds after which a scenario has failed."""
OURS = ("/imagegate/", "/json/", "/asyncio/")
"""Parts of the paths of files whose allocations count for the operator (`Figures.traced`). The API
server allocates in files of the benchmark, the simulation, and libraries that only these use."""


@dataclass(frozen=True, slots=True)
class Figures:
    scenario: str
    nodes: int
    prefetches: int
    cpu: Seconds
    minutes: float
    """Duration of the scenario in virtual time."""
    rss: int
    """Growth of the process's resident memory since the start of the operator, in bytes."""
    traced: int | None
    """Bytes allocated by the operator's code that are in use at the end, if tracemalloc runs."""
    requests: dict[str, int]
    """Number of the operator's requests, by verb and resource."""
    events: dict[str, int]
    """Number of watch events that the operator received, by resource."""
    decisions: dict[str, int]
    """Number of decisions about nodes, and about shares (one node and one prefetch)."""
    released: int
    """Number of joining nodes whose taint was removed."""
    release: dict[str, float | None]
    """Virtual seconds from the kubelet's report of the pull to the removal of the taint: p50, p99.
    CPU time takes no virtual time, so this is the network, and the wait in queues, for workers and
    for connections."""


class Bench:
    """One cluster and one operator."""

    def __init__(
        self, nodes: int, prefetches: int, *, trace: bool = False, latency: float = 0.01
    ) -> None:
        self.nodes = nodes
        self.network = Network(random.Random(2), latency)
        self.meter = Meter()
        self.server = Api(self.meter, random.Random(1))
        self.kubelets = Kubelets(self.meter, self.server)
        self.counts = Counts()
        self.requests = Counter[str]()
        self.registry = Registry()
        self.operator: Operator | None = None
        self.bodies = [
            objects.prefetch(f"app-{n:03}", _image(n, 1), rollout={"maxParallel": "100%"})
            for n in range(prefetches)
        ]
        self._trace = trace
        self._thresholds = gc.get_threshold()
        self._rss = 0
        self._began = 0.0
        for n in range(prefetches):
            for tag in (1, 2):
                self.registry.push(_image(n, tag), f"{n}/{tag}", 300 * objects.MB)
        self.server.observers.append(self._count)
        for namespace in (NAMESPACE, "default"):
            self.server.plant("namespaces", {"metadata": {"name": namespace}})
        policy = {"metadata": {"name": "imagegate"}}
        self.server.plant("mutatingadmissionpolicies", policy)

    # ---- steps of scenarios

    def settle(self) -> None:
        """Add the nodes, which hold the images of every prefetch."""
        reader = Reader([NAMESPACE])
        for body in self.bodies:
            body["metadata"].update(finalizers=["imagegate.dev/cleanup"], generation=1)
            self.server.plant("imageprefetches", body)
        self.kubelets.plant(range(self.nodes), [self.parsed(reader, body) for body in self.bodies])

    @staticmethod
    def parsed(reader: Reader, body: Any) -> Prefetch:
        return reader.parse(body)

    def start(self) -> None:
        # Exclude the objects of the cluster from garbage collection during the measurement.
        gc.collect()
        gc.freeze()
        self._rss = resident()
        if self._trace:
            tracemalloc.start()
        self.operator = Operator(
            self.meter, self.server, self.kubelets, self.network, self.registry
        )

    def apply(self, number: int = 0) -> None:
        name = self.bodies[number]["metadata"]["name"]
        self.server.do("person", "POST", "imageprefetches", ("", name), self.bodies[number])

    def edit(self, number: int = 0) -> None:
        """Change the prefetch's image to another tag."""
        name = self.bodies[number]["metadata"]["name"]
        images = [{"image": _image(number, 2)}]
        self.server.change(
            "person", "imageprefetches", ("", name), lambda body: body["spec"].update(images=images)
        )

    def delete(self, number: int = 0) -> None:
        name = self.bodies[number]["metadata"]["name"]
        self.server.do("person", "DELETE", "imageprefetches", ("", name), {})

    async def begin_idle(self) -> None:
        """Start with nodes that hold every image, and measure from when the operator is idle."""
        self.settle()
        self.start()
        await self.consistent(self.nodes)
        await self.quiet()
        self.measure()

    async def quiet(self) -> None:
        """Wait until the operator is idle after its second resync."""
        await self.until(lambda: bool(self.operator and self.operator.process.store.complete))
        await asyncio.sleep(30.0)
        await self.until(lambda: bool(self.operator and self.operator.idle))

    async def consistent(self, nodes: int) -> None:
        """Wait until the status of every prefetch is Ready with this number of nodes."""
        names = [body["metadata"]["name"] for body in self.bodies]
        await self.until(lambda: all(self._ready(name, nodes) for name in names))
        await self.until(lambda: bool(self.operator and self.operator.idle))

    def cached(self, number: int = 0) -> int:
        """The value of a prefetch's ``status.nodes.cached``."""
        prefetch = self.server.get("imageprefetches", self.bodies[number]["metadata"]["name"]) or {}
        return int(((prefetch.get("status") or {}).get("nodes") or {}).get("cached", 0))

    def _ready(self, name: str, nodes: int) -> bool:
        prefetch = self.server.get("imageprefetches", name) or {}
        status, metadata = prefetch.get("status") or {}, prefetch.get("metadata") or {}
        return (
            (status.get("nodes") or {}).get("cached") == nodes
            and status.get("observedGeneration") == metadata.get("generation")
            and any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in status.get("conditions") or ()
            )
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        end = loop.elapsed() + PATIENCE
        look = self.meter.api(condition)
        while not look():
            assert self.operator is None or not self.operator.running.done(), "the operator ended"
            assert loop.elapsed() < end, "the scenario has not ended in time"
            await asyncio.sleep(1.0)

    # ---- figures

    def measure(self) -> None:
        """Start the measurement: set all counters to 0."""
        gc.collect()
        self.requests.clear()
        self.server.told.clear()
        self.counts.decisions.clear()
        self.kubelets.released.clear()
        self._began = loop.elapsed()
        self.meter.reset()

    def figures(self, scenario: str) -> Figures:
        cpu = self.meter.read()
        gc.collect()
        return Figures(
            scenario,
            self.nodes,
            len(self.bodies),
            cpu,
            round((loop.elapsed() - self._began) / 60, 2),
            resident() - self._rss,
            traced() if self._trace else None,
            dict(sorted(self.requests.items())),
            dict(sorted(self.server.told.items())),
            dict(sorted(self.counts.decisions.items())),
            len(self.kubelets.released),
            {f"p{p}": quantile(self.kubelets.released, p / 100) for p in (50, 99)},
        )

    async def close(self) -> None:
        self.kubelets.rest()
        if self.operator is not None:
            self.operator.running.cancel()
            await asyncio.gather(self.operator.running, return_exceptions=True)
        self.counts.close()
        self.meter.close()
        gc.unfreeze()
        gc.set_threshold(*self._thresholds)
        if self._trace:
            tracemalloc.stop()

    def _count(self, request: Request) -> None:
        if request.actor == "operator":
            self.requests[f"{request.method} {request.resource}"] += 1


Scenario = Callable[[Bench], Coroutine[Any, Any, None]]


async def start(bench: Bench) -> None:
    """The operator starts in a cluster where every node holds all images, and writes the status."""
    bench.settle()
    bench.start()
    bench.measure()
    await bench.consistent(bench.nodes)


async def rollout(bench: Bench) -> None:
    """Prefetches of one image each are created with ``maxParallel: 100%``, and become Ready."""
    bench.kubelets.plant(range(bench.nodes))
    bench.start()
    await bench.quiet()
    bench.measure()
    for number in range(len(bench.bodies)):
        bench.apply(number)
    await bench.consistent(bench.nodes)


async def join(bench: Bench) -> None:
    """During such a rollout of one prefetch, 500 nodes join within 20 seconds."""
    bench.kubelets.plant(range(bench.nodes))
    bench.start()
    await bench.quiet()
    bench.measure()
    bench.apply()
    await bench.until(lambda: bench.cached() > bench.nodes // 4)
    for number in range(JOINING):
        bench.meter.api(bench.kubelets.join)(bench.nodes + number, KEY)
        await asyncio.sleep(20.0 / JOINING)
    await bench.consistent(bench.nodes + JOINING)


async def delete(bench: Bench) -> None:
    """A prefetch whose images every node holds is deleted, until its finalizer is removed."""
    await bench.begin_idle()
    bench.delete()
    await bench.until(lambda: not bench.server.objects["imageprefetches"])


async def heartbeats(bench: Bench, minutes: float) -> None:
    """Every node holds all images. Kubelets report every 5 minutes; 1 % of the nodes flap."""
    await bench.begin_idle()
    bench.kubelets.beat(flapping=0.01)
    await asyncio.sleep(60 * minutes)


async def shares(bench: Bench) -> None:
    """All prefetches match all nodes, and the image of one prefetch is edited. Each pod event then
    concerns one share of a node, and the node has one share for each prefetch.
    """
    await bench.begin_idle()
    bench.edit()
    await bench.until(lambda: bench.cached() < bench.nodes)
    await bench.consistent(bench.nodes)


@dataclass(frozen=True, slots=True)
class Case:
    scenario: str
    nodes: int
    prefetches: int = 1
    minutes: float = 60.0
    """Duration of `heartbeats` in virtual time."""
    trace: bool = False
    latency: float = 0.01
    """Virtual seconds of one way to the API server, on average."""


@dataclass(slots=True)
class _Outcome:
    figures: list[Figures] = field(default_factory=list)


def run(case: Case) -> Figures:
    """Run one case in this process."""
    logger = logging.getLogger("imagegate")
    level = logger.level
    logger.setLevel(logging.ERROR)
    outcome = _Outcome()

    async def main() -> None:
        bench = Bench(case.nodes, case.prefetches, trace=case.trace, latency=case.latency)
        scenario: dict[str, Scenario] = {
            "start": start,
            "rollout": rollout,
            "join": join,
            "delete": delete,
            "heartbeats": lambda b: heartbeats(b, case.minutes),
            "shares": shares,
        }
        try:
            await scenario[case.scenario](bench)
            outcome.figures.append(bench.figures(case.scenario))
        finally:
            await bench.close()

    try:
        loop.run(main, 1)
    finally:
        logger.setLevel(level)
    return outcome.figures[0]


def resident() -> int:
    """The resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def traced() -> int:
    statistics = tracemalloc.take_snapshot().statistics("filename")
    return sum(
        line.size
        for line in statistics
        if any(part in line.traceback[0].filename for part in OURS)
        and "/tests/" not in line.traceback[0].filename
    )


def _image(number: int, tag: int) -> str:
    return f"registry.test/team/app-{number}:{tag}"
