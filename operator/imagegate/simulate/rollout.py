"""The operator's decisions in virtual time.

The book-keeping is the ledger's `Entry`. As in the operator, a change plans a pass over the rollout
`PASS_INTERVAL` later, a pass grants slots, and a node with a slot starts its pull. The time that
the operator and the API server need themselves is left out.
"""

from __future__ import annotations

from imagegate.domain import failures, retry
from imagegate.domain.actions import Standing
from imagegate.domain.facts import Attempts, NodeState
from imagegate.domain.failures import FailureClass
from imagegate.domain.retry import Cause, History
from imagegate.domain.throttle import REFUSALS
from imagegate.runtime.ledger_entry import Entry
from imagegate.runtime.queues import PASS_INTERVAL
from imagegate.simulate.agenda import Agenda
from imagegate.simulate.course import Course
from imagegate.simulate.network import Network
from imagegate.simulate.pulls import Pulls
from imagegate.simulate.strategies import Strategy
from imagegate.simulate.world import World

GROUP = "image"
"""The key of the images' group: all of them are pulled by one puller pod."""
LONGEST = 7 * 86400.0
"""Seconds after which a rollout is given up."""
MOST_ATTEMPTS = 50
"""Attempts, for each node, after which a rollout is given up."""


def simulate(world: World, strategy: Strategy, pass_interval: float = PASS_INTERVAL) -> Course:
    """Roll the image out, until every node holds it."""
    return Rollout(world, strategy, pass_interval).run()


class Rollout:
    def __init__(
        self, world: World, strategy: Strategy, pass_interval: float = PASS_INTERVAL
    ) -> None:
        self.entry = Entry()
        self._world = world
        self._strategy = strategy
        self._pass_interval = pass_interval
        self._prefetch = strategy.prefetch
        self._agenda = Agenda()
        self._network = Network(world)
        self._pulls = Pulls(world, self._agenda, self._network, self._ended)
        self._timeout = retry.deadline(self._prefetch.retry, world.image)
        self._zones = {name: world.zone(number) for number, name in enumerate(world.names())}
        self._attempts: dict[str, Attempts] = {}
        self._pods: dict[str, int] = {}
        """By node, the number of its unfinished puller pod."""
        self._pass_planned = False
        self._cached: list[tuple[float, str]] = []
        self._started: list[tuple[float, str]] = []
        self._failed = self._refused = 0

    def run(self) -> Course:
        for node in self._zones:
            self._record(node, Standing(NodeState.PENDING, wants=True))
        agenda, network, most = self._agenda, self._network, MOST_ATTEMPTS * self._world.nodes
        while len(self._cached) < self._world.nodes and len(self._started) < most:
            at = min(agenda.next_at, network.next_at)
            if at > LONGEST:
                break
            agenda.now = at
            self._pulls.arrived(network.advance(at))
            agenda.run(at)
        return Course(
            strategy=self._strategy.name,
            nodes=self._world.nodes,
            cached_at=tuple(at for at, _ in self._cached),
            cached=tuple(node for _, node in self._cached),
            started=tuple(self._started),
            failed=self._failed,
            refused=self._refused,
            most_pulls=self._pulls.most,
            registry_bytes=network.from_registry,
            registry_rates=tuple(network.rates),
            ended_at=agenda.now,
        )

    # ---- decisions

    def pass_(self) -> tuple[str, ...]:
        """One pass of the rollout, as in `Slots.grant`. Returns the nodes that got a slot."""
        self._pass_planned = False
        if not self.entry.wants:
            return ()
        granted = self._strategy.grant(self.entry.rollout_view(self._prefetch))
        for node in granted:
            self.entry.slots.add(node)
        for node in granted:
            self._start(node)
        return granted

    def _start(self, node: str) -> None:
        """The node has a slot: the operator creates its puller pod."""
        pod = self._pods[node] = len(self._started)
        self._started.append((self._agenda.now, node))
        self._record(node, self._standing(node, pulling=True))
        self._agenda.add(self._timeout, lambda: self._time_out(node, pod))
        self._pulls.begin(node)

    def _time_out(self, node: str, pod: int) -> None:
        """The deadline of a puller pod. The kubelet continues the pull (kubernetes#113606)."""
        if self._pods.get(node) == pod:
            self._ended(node, failures.PULL_TIMEOUT)

    def _ended(self, node: str, failure: FailureClass | None) -> None:
        """A pull has ended."""
        if self._pods.pop(node, None) is None:
            return  # nobody waits for it: its pod's deadline is over
        now, entry, full = self._agenda.now, self.entry, self.entry.parallel(self._prefetch)
        if failure is None:
            if self._strategy.throttled:
                entry.throttle = entry.throttle.after_success(now, full)
            self._cached.append((now, node))
            self._attempts.pop(node, None)
            self._record(node, Standing(NodeState.CACHED))
            return
        self._failed += 1
        if failure.reason in REFUSALS:
            self._refused += 1
            if self._strategy.throttled:
                entry.throttle = entry.throttle.after_refusal(now, full)
        history = History(
            self._attempts.get(node), self._prefetch.retry, key=f"{node}/{GROUP}", now=now
        )
        attempts = self._attempts[node] = history.after(Cause(failure, ""))
        self._record(node, self._standing(node))
        self._agenda.add(
            attempts.next_at - now, lambda: self._record(node, self._standing(node, wants=True))
        )

    def _standing(self, node: str, *, pulling: bool = False, wants: bool = False) -> Standing:
        """The state of a node that does not hold the image."""
        attempts = self._attempts.get(node)
        if retry.exhausted(attempts, self._prefetch.retry):
            state = NodeState.FAILED
        else:
            state = NodeState.PULLING if pulling else NodeState.PENDING
        return Standing(state, pulling, wants, attempts)

    def _record(self, node: str, standing: Standing) -> None:
        """Record a decision; a change plans a pass."""
        changed = self.entry.record(node, self._zones[node], standing, held=False)
        if changed and not self._pass_planned:
            self._pass_planned = True
            self._agenda.add(self._pass_interval, self.pass_, last=True)
