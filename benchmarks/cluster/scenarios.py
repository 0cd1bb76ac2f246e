"""What happens in the cluster: first with the operator, then with the bare client."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cluster import audit, nodes, programs
from benchmarks.cluster.cluster import PREFETCH, USER, Bench
from benchmarks.cluster.measure import Window
from benchmarks.cluster.plan import Joining, Plan, Rollout
from benchmarks.cluster.process import Operator
from benchmarks.cluster.profile import Profile
from imagegate.domain.facts import RolloutSpec
from tests.cluster.errors import ClusterError
from tests.cluster.progress import say, step
from tests.e2e.installation import KEY

PATIENCE = 1800.0
"""Seconds after which a scenario has failed."""
JOIN_SECONDS = 20.0
"""From the first of 500 joining nodes to the last."""
SHORTEST_REFRESH = 30
_PAGING = re.compile(r"(?<=[?&])(limit|continue|resourceVersion|resourceVersionMatch)=[^&]*&?")


@dataclass(frozen=True, slots=True)
class Step:
    """What the bare client does again."""

    plan: Plan
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    row: dict[str, Any] | None = None
    """The figures of the scenario; None: it was not measured, and only led to another state."""


@dataclass
class Run:
    """All scenarios of one run, on one cluster."""

    bench: Bench
    idle_minutes: float = 5.0
    profiled: tuple[str, ...] = ()
    artifacts: Path = Path(".artifacts")
    tell: Callable[[list[dict[str, Any]]], None] = lambda _: None
    """Is called with all figures so far."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    _steps: list[Step] = field(default_factory=list)
    _leader: Operator | None = None
    _cached: bool = False
    """Whether the ImagePrefetch exists and is Ready."""
    _joined: bool = False

    def play(self, scenarios: list[str]) -> None:
        """The scenarios with the operator, then their floors."""
        self._start()
        for name in scenarios:
            scenario = SCENARIOS[name]
            self._reach(cached=scenario.cached)
            with step(f"scenario {name}"):
                scenario.play(self)
        self._stop()
        self._clean()
        for each in self._steps:
            with step(f"floor of {each.row['scenario'] if each.row else 'a way there'}"):
                self._floor(each)

    # ---- the operator

    @property
    def leader(self) -> Operator:
        assert self._leader is not None
        return self._leader

    @property
    def nodes(self) -> int:
        size = self.bench.size
        return size.joining.stop if self._joined else size.nodes

    def _start(self, number: int = 0) -> None:
        """Start a replica, and wait until it leads and its second resync is over: the start is the
        scenario `start`.
        """
        self._leader = self.bench.operator(number)
        self._leader.start()
        self._settle()

    def _settle(self) -> None:
        self.wait(lambda: len(list(self.leader.said("resynced"))) > 1, "the second resync")
        time.sleep(2)

    def _stop(self) -> None:
        self.leader.stop()
        log = self.bench.cluster.control_plane.group.log(self.leader.identity)
        shutil.copy(log, self.artifacts / "bench-operator.log")

    # ---- states

    def _reach(self, *, cached: bool) -> None:
        """Lead to the state in which a scenario begins."""
        if cached and not self._cached:
            with step("a rollout on the way"):
                self.rollout("100%", "rollout", measured=False)
        elif not cached and self._cached:
            with step("a deletion on the way"):
                self.delete(measured=False)

    def _clean(self) -> None:
        """Lead to the state in which the first scenario began, without the operator: with the
        clean-up of the chart's program.
        """
        if self._cached:
            with step("cleaning up"):
                operator = self._leader = self.bench.operator(0)
                operator.start()
                self.delete(measured=None)
                operator.stop()

    # ---- scenarios

    def rollout(self, parallel: str, name: str, *, measured: bool = True) -> None:
        """An ImagePrefetch for all nodes, until its status says that all have the images."""
        with self._window(name, measured=measured) as window:
            self.bench.apply(parallel)
            self.wait(lambda: self.bench.ready(self.nodes), f"{self.nodes} nodes cached")
        self._cached = True
        plan = dataclasses.replace(self._plan(window), rollout=self._rollout(parallel))
        before = lambda: self.bench.apply(parallel)  # noqa: E731
        self._add(window, plan, before=before, measured=measured)

    def join(self) -> None:
        """The same, and nodes join in the middle of it."""
        size = self.bench.size
        joining = size.joining
        seconds = JOIN_SECONDS * max(0.1, len(joining) / 500)
        after = size.nodes // 4
        with self._window("join") as window:
            self.bench.apply("100%")
            self.wait(lambda: self.bench.cached() > after, f"{after} nodes cached")
            numbers = str(joining.start), str(joining.stop)
            self.bench.run("nodes", "join", *numbers, str(seconds))
            self._joined = True
            self.wait(lambda: self.bench.ready(self.nodes), f"{self.nodes} nodes cached")
        self._cached = True
        plan = dataclasses.replace(
            self._plan(window),
            rollout=self._rollout("100%"),
            joining=Joining((joining.start, joining.stop), after, seconds, KEY),
        )
        self._add(window, plan, before=lambda: self.bench.apply("100%"))

    def start(self) -> None:
        """The operator starts in a cluster where everything is cached, until it has decided about
        every node.
        """
        self.leader.stop()
        operator = self._leader = self.bench.operator(0)
        with self._window("start", running=False) as window:
            operator.start()
            self._decided(operator)
        leading = next(operator.said("leading"))["time"]
        window.figures["notes"] = {
            "process to leading": leading - operator.started,
            "leading to every node decided": window.ended - leading,
        }
        window.figures["seconds"] = window.ended - operator.started
        self._add(window, Plan(lists=_lists(window)))

    def resync(self) -> None:
        """The second list of everything, 15 s after the start, and what follows from it."""
        self.leader.stop()
        operator = self._leader = self.bench.operator(0)
        samples: list[tuple[float, float]] = []

        def ended() -> bool:
            samples.append((time.time(), operator.cpu()))
            return len(list(operator.said("resynced"))) > 1

        with self._window("resync", running=False) as window:
            operator.start()
            self._decided(operator)
            operator.reset_peak()
            self.wait(ended, "the second resync")
            time.sleep(1)
            ended()
        said = list(operator.said("resynced"))[1]
        began = window.began = said["time"] - said["seconds"]
        window.requests = [request for request in window.requests if request.begun >= began]
        before = max(cpu for at, cpu in samples if at <= began)
        window.figures |= window.asked()
        window.figures |= {"seconds": said["seconds"], "cpu": samples[-1][1] - before}
        self._add(window, Plan(lists=_lists(window)))

    def idle(self) -> None:
        """Nothing happens but the status updates of the kubelets, every 5 minutes each."""
        self._settle()
        seconds = 60 * self.idle_minutes
        process = self.bench.begin("nodes", "beat", "0", str(self.bench.size.nodes), str(seconds))
        with self._window("idle", period=2.0) as window:
            time.sleep(seconds)
        programs.finish(self.bench.cluster, process)
        share = window.figures["cpu"] / window.figures["consistent"]
        window.figures |= {
            "seconds": None,
            "notes": {"percent of a core": 100 * share, "minutes": self.idle_minutes},
        }
        self._add(window, Plan())

    def takeover(self) -> None:
        """The leader is killed, and a standby takes over."""
        killed, standby = self.leader, self.bench.operator(1)
        standby.start()
        self.wait(lambda: standby.get("/healthz") is not None, "the standby")
        time.sleep(5)  # It looks at the Lease every 2 s.
        with self._window("leader", operator=standby) as window:
            self._leader = standby
            killed.kill()
            self.wait(lambda: any(standby.said("leading")), "another leader")
            self._decided(standby)
        leading = next(standby.said("leading"))["time"]
        window.figures |= {
            "seconds": window.ended - window.began,
            "notes": {
                "killed to leading": leading - window.began,
                "leading to every node decided": window.ended - leading,
            },
        }
        self._settle()
        self._add(window, Plan())

    def digest(self) -> None:
        """The tags of the images have moved, until every node has the new digests.

        A shorter interval of ``refresh`` makes the operator look the tags up now.
        """
        self.bench.push()
        before = self.bench.status()["target"]
        spec = {"refresh": {"intervalSeconds": SHORTEST_REFRESH}}

        def ended() -> bool:
            return self.bench.status()["target"] != before and self.bench.ready(self.nodes)

        with self._window("digest") as window:
            self.bench.cluster.api.patch(self.bench.path, {"spec": spec})
            self.wait(ended, "the new digests on all nodes")
        # Tags are not looked up again before the interval has passed since the last time.
        first = window.figures["first_pod"]
        window.figures["seconds"] -= first
        window.figures["notes"] = {"until the first pod, not counted": first}
        plan = dataclasses.replace(self._plan(window), rollout=self._rollout("100%"))
        self._add(window, plan)

    def delete(self, *, measured: bool | None = True) -> None:
        """The ImagePrefetch is deleted, until its finalizer is removed. ``measured`` None: the
        bare client does not repeat it.
        """
        with self._window("delete", measured=bool(measured)) as window:
            self._delete_prefetch()
            self.wait(self.bench.deleted, "the end of the deletion")
        joined = self._joined
        self._cached = False
        self._remove_joined(joined=joined)
        if measured is not None:
            self._add(
                window,
                self._plan(window),
                before=self._delete_prefetch,
                after=lambda: self._remove_joined(joined=joined),
                measured=measured,
            )

    def _delete_prefetch(self) -> None:
        self.bench.cluster.api.delete(self.bench.path)

    def _remove_joined(self, *, joined: bool) -> None:
        if joined:
            numbers = self.bench.size.joining
            self.bench.run("nodes", "delete", str(numbers.start), str(numbers.stop))
            self.wait(lambda: self.bench.pods() == 0, "no pods")
        self._joined = False

    # ---- measuring

    @contextlib.contextmanager
    def _window(
        self, name: str, *, operator: Operator | None = None, measured: bool = True, **options: Any
    ) -> Iterator[Window]:
        profile = None
        program = shutil.which("py-spy")
        if measured and name in self.profiled:
            if program is None:
                raise ClusterError("no py-spy in PATH: pip install py-spy")
            profile = Profile(program, self.artifacts / f"bench-{name}.stacks")
        operator = operator or self.leader
        with Window.opened(self.bench, operator, name, profile=profile, **options) as window:
            yield window
        window.figures |= {
            "nodes": self.nodes,
            "images": self.bench.size.images,
            "notes": {},
        }

    def _add(
        self,
        window: Window,
        plan: Plan,
        *,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
        measured: bool = True,
    ) -> None:
        row = window.figures if measured else None
        if row is not None:
            self.rows.append(row)
            self.tell(self.rows)
        self._steps.append(Step(plan, before, after, row))

    def _plan(self, window: Window) -> Plan:
        plan = audit.plan(window.requests, USER, self.bench.known)
        return dataclasses.replace(plan, zones=nodes.zones(range(self.bench.size.nodes)))

    def _rollout(self, parallel: str) -> Rollout:
        count = int(parallel.removesuffix("%"))
        spec = RolloutSpec(max_parallel=count, percent=True)
        return Rollout(spec.parallel(self.bench.size.nodes), spec.seeds, spec.fanout)

    def _floor(self, each: Step) -> None:
        each.before()
        if not each.plan.empty:
            figures = self.bench.play(each.plan)
            if figures["refused"]:
                say(f"the API server refused: {figures['refused']}")
            if each.row is not None:
                each.row["floor"] = figures
                self.tell(self.rows)
        each.after()

    def _decided(self, operator: Operator) -> None:
        """Wait until the operator has decided about every node."""
        self.wait(lambda: operator.decided(PREFETCH) == self.nodes, "every node decided", 0.2)

    def wait(self, done: Callable[[], bool], what: str, period: float = 0.1) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end:
                raise ClusterError(f"{what}: not within {PATIENCE:.0f} s")
            _ = self.leader.pid  # raises ClusterError if it has ended
            time.sleep(period)


def _lists(window: Window) -> list[str]:
    """The collections that the operator has listed, without the parameters of paging."""
    return [
        _PAGING.sub("", request.uri).rstrip("?&")
        for request in window.requests
        if request.user == USER and request.verb == "list" and "continue=" not in request.uri
    ]


@dataclass(frozen=True, slots=True)
class Scenario:
    play: Callable[[Run], None]
    cached: bool
    """Whether the images are on all nodes when it begins. Else there is no ImagePrefetch."""


SCENARIOS = {
    "rollout-100": Scenario(lambda run: run.rollout("100%", "rollout-100"), cached=False),
    "start": Scenario(Run.start, cached=True),
    "resync": Scenario(Run.resync, cached=True),
    "idle": Scenario(Run.idle, cached=True),
    "leader": Scenario(Run.takeover, cached=True),
    "digest": Scenario(Run.digest, cached=True),
    "delete": Scenario(Run.delete, cached=True),
    "rollout-10": Scenario(lambda run: run.rollout("10%", "rollout-10"), cached=False),
    "join": Scenario(Run.join, cached=False),
}
"""In the order in which the fewest rollouts are needed."""
