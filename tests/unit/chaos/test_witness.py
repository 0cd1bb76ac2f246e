"""The witness of the chaos tests objects to what is forbidden, and to nothing else.

Each test tells it a history as the API server, containerd and the audit log would: a witness that
cannot object would make every fault look harmless.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.chaos.evidence import Violation, Write
from tests.chaos.history import LABEL, OBSERVED, SIMULATED, Seen, Snapshot
from tests.chaos.witness import Witness
from tests.unit.chaos.bodies import CACHED, FOREIGN, GATE, GOING, IMAGE, Body, node, pod, prefetch

OPERATOR = "system:serviceaccount:imagegate-system:imagegate"


@dataclass
class Told:
    """containerd and the audit log, as the tests tell them."""

    complete: dict[tuple[str, str], float] = field(default_factory=dict)
    deaf: set[str] = field(default_factory=set)
    written: list[Write] = field(default_factory=list)

    def present(self, node: str, image: str, at: float) -> bool | None:
        if node in self.deaf:
            return None
        return self.complete.get((node, image), float("inf")) <= at

    def writes(self, resource: str, name: str, since: float, until: float) -> list[Write]:
        return [
            write
            for write in self.written
            if (write.resource, write.name) == (resource, name) and since <= write.at <= until
        ]


class Story:
    """A history that is told step by step; every version is seen 10 s after the one before."""

    def __init__(self, **told: Any) -> None:
        self.told = Told(**told)
        self.witness = Witness(self.told, self.told, OPERATOR)
        self.now = 1_000.0
        self.version = 100
        self.see("NodeGate", "ADDED", {"metadata": {"name": "default"}, "spec": {}})

    def see(self, kind: str, type_: str, body: Body, *, after: float = 10.0) -> float:
        self.now += after
        self.version += 1
        body = copy.deepcopy(body)
        body["metadata"]["resourceVersion"] = str(self.version)
        self.witness.read([Seen(kind, type_, self.version, self.now, body)])
        return self.now

    def relist(self, kind: str, *bodies: Body) -> None:
        since, self.now = self.now, self.now + 10.0
        self.version += 1
        items = []
        for body in bodies:
            item = copy.deepcopy(body)
            item["metadata"].setdefault("resourceVersion", str(self.version))
            items.append(item)
        self.witness.read([Snapshot(kind, self.version, self.now, tuple(items), since)])

    def wrote(self, verb: str, resource: str, name: str, *, user: str = OPERATOR) -> None:
        self.told.written.append(Write(self.now + 9.9, user, verb, resource, name))

    @property
    def rules(self) -> list[str]:
        return [violation.rule for violation in self.witness.violations]


# ---- taints


def test_a_foreign_taint_that_vanishes() -> None:
    story = Story()
    story.see("Node", "ADDED", node())
    story.see("Node", "MODIFIED", node(taints=(GATE,)))
    assert story.rules == ["foreign taints are not touched"]


def test_a_foreign_taint_that_changes_its_value() -> None:
    story = Story()
    story.see("Node", "ADDED", node())
    story.see("Node", "MODIFIED", node(taints=(GATE, {**FOREIGN, "value": "y"})))
    assert story.rules == ["foreign taints are not touched"]


def test_kubernetes_own_taints_come_and_go_but_not_with_ours() -> None:
    not_ready = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
    story = Story()
    story.see("Node", "ADDED", node(taints=(GATE, not_ready)))
    story.see("Node", "MODIFIED", node(taints=(GATE,)))
    assert story.rules == []
    story.see("Node", "MODIFIED", node(taints=(GATE, not_ready)))
    story.see("Node", "MODIFIED", node(taints=()))
    assert story.rules == ["foreign taints are not touched"]


def test_another_machine_of_the_same_name_brings_its_own_taints() -> None:
    story = Story()
    story.see("Node", "ADDED", node())
    other = node(taints=(GATE,))
    other["metadata"]["uid"] = "another"
    story.see("Node", "MODIFIED", other)
    assert story.rules == []


# ---- release


def released(story: Story, **kwargs: Any) -> None:
    story.see("Node", "ADDED", node(**kwargs))
    story.see("Node", "MODIFIED", node(taints=(FOREIGN,), **kwargs))


EARLY = "no release before the images are there"


def test_released_without_its_images() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    released(story)
    assert story.rules == [EARLY]


def test_released_with_its_images() -> None:
    story = Story(complete={("n1", IMAGE): 1_025.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    released(story)
    assert story.rules == []
    assert story.witness.checked[EARLY] == 1


def test_released_before_the_image_was_complete_by_the_audit_log() -> None:
    """The watch was late: only the audit log knows that the patch came first."""
    story = Story(complete={("n1", IMAGE): 1_039.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node())
    story.told.written.append(Write(1_038.0, OPERATOR, "patch", "nodes", "n1"))
    story.see("Node", "MODIFIED", node(taints=(FOREIGN,)))
    assert story.rules == [EARLY]


def test_the_watch_may_be_faster_than_the_answer_to_the_patch() -> None:
    """An earlier write that was answered in time is not the one that released."""
    story = Story(complete={("n1", IMAGE): 1_039.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node())
    story.told.written += [
        Write(1_038.0, OPERATOR, "patch", "nodes", "n1", began=1_037.9),
        Write(1_041.0, OPERATOR, "patch", "nodes", "n1", began=1_039.5),
    ]
    assert story.see("Node", "MODIFIED", node(taints=(FOREIGN,))) == 1_040.0
    assert story.rules == []


def test_two_leaders_may_do_twice_as_much_and_no_more() -> None:
    story = Story()
    story.witness.leaders.append((0.0, float("inf"), 2))
    story.see("ImagePrefetch", "ADDED", prefetch())
    for name in ("n1", "n2", "n3"):
        story.see("Node", "ADDED", node(name, taints=()))
    story.see("Pod", "ADDED", pod("a", on="n1"))
    story.see("Pod", "ADDED", pod("b", on="n1"))
    story.see("Pod", "ADDED", pod("c", on="n2"))
    assert story.rules == []
    story.see("Pod", "ADDED", pod("d", on="n1"))
    story.see("Pod", "ADDED", pod("e", on="n3"))
    assert story.rules == ["one puller pod per node, prefetch and group", MANY]


def test_every_gating_prefetch_counts() -> None:
    story = Story(complete={("n1", IMAGE): 0.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("ImagePrefetch", "ADDED", prefetch("q", images=(IMAGE, "other:1")))
    released(story)
    assert story.rules == [EARLY]


def test_who_does_not_gate_or_does_not_match_or_is_gone_does_not_count() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch("a", gate={"mode": "Never"}))
    story.see("ImagePrefetch", "ADDED", prefetch("b", nodeSelector={"matchLabels": {"x": "y"}}))
    gone = prefetch("c")
    story.see("ImagePrefetch", "ADDED", gone)
    story.see("ImagePrefetch", "DELETED", gone)
    going = prefetch("d")
    going["metadata"] |= GOING
    story.see("ImagePrefetch", "ADDED", going)
    released(story)
    assert story.rules == []


def test_a_prefetch_that_is_younger_than_the_lag_is_not_held_against_anybody() -> None:
    story = Story()
    story.see("Node", "ADDED", node())
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "MODIFIED", node(taints=(FOREIGN,)), after=1.0)
    assert story.rules == []


def test_fail_open_releases_at_the_timeout_and_not_before() -> None:
    for timeout, expected in ((60, [EARLY]), (30, [])):
        story = Story()
        story.see("ImagePrefetch", "ADDED", prefetch(gate={"timeoutSeconds": timeout}))
        released(story)
        assert story.rules == expected


def test_fail_closed_never_releases() -> None:
    story = Story()
    gate = {"policy": "FailClosed", "timeoutSeconds": 1}
    story.see("ImagePrefetch", "ADDED", prefetch(gate=gate))
    story.see("Pod", "ADDED", pod(waiting=("ErrImagePull", "not found")))
    released(story)
    assert story.rules == [EARLY]


def test_fail_open_releases_when_the_failure_is_permanent() -> None:
    for message, expected in (("app:1: not found", []), ("connection refused", [EARLY])):
        story = Story()
        story.see("ImagePrefetch", "ADDED", prefetch())
        story.see("Node", "ADDED", node())
        story.see("Pod", "ADDED", pod(waiting=("ErrImagePull", message)))
        story.see("Node", "MODIFIED", node(taints=(FOREIGN,)))
        assert story.rules == expected


def test_a_suspended_gate_releases_everybody() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    gate = {"metadata": {"name": "default"}, "spec": {"suspend": True}}
    story.see("Node", "ADDED", node())
    story.see("NodeGate", "MODIFIED", gate)
    story.see("Node", "MODIFIED", node(taints=(FOREIGN,)))
    assert story.rules == []


def test_containerd_that_was_not_listened_to_is_no_proof_but_is_counted() -> None:
    story = Story(deaf={"n1"})
    story.see("ImagePrefetch", "ADDED", prefetch())
    released(story)
    assert story.rules == []
    assert story.witness.unknown > 0


def test_on_simulated_nodes_the_finished_pod_is_the_proof() -> None:
    for phase, expected in (("Pending", [EARLY]), ("Succeeded", [])):
        story = Story()
        story.see("ImagePrefetch", "ADDED", prefetch())
        story.see("Node", "ADDED", node(labels={SIMULATED: "true"}))
        story.see("Pod", "ADDED", pod(phase=phase))
        story.see("Node", "MODIFIED", node(labels={SIMULATED: "true"}, taints=(FOREIGN,)))
        assert story.rules == expected


# ---- labels


def test_a_label_without_the_images() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node(taints=()))
    story.see("Node", "MODIFIED", node(taints=(), labels=CACHED))
    assert story.rules == ["a label says what the node holds"]


def test_a_label_with_a_target_that_nobody_ever_asked_for() -> None:
    story = Story(complete={("n1", IMAGE): 0.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node(taints=()))
    story.see("Node", "MODIFIED", node(taints=(), labels={LABEL + "p": "0" * 12}))
    assert story.rules == ["a label says what the node holds"]


def test_a_label_with_the_images_also_of_a_target_that_was_just_replaced() -> None:
    story = Story(complete={("n1", IMAGE): 0.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node(taints=()))
    story.see("ImagePrefetch", "MODIFIED", prefetch(images=("other:1",)))
    story.see("Node", "MODIFIED", node(taints=(), labels=CACHED))
    assert story.rules == []


# ---- pulls

MANY = "at most maxParallel nodes of a prefetch pull"


def test_more_nodes_pull_than_may() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    for name in ("n1", "n2"):
        story.see("Node", "ADDED", node(name, taints=()))
    story.see("Pod", "ADDED", pod("a", on="n1"))
    story.see("Pod", "ADDED", pod("b", on="n2"))
    assert story.rules == [MANY]


def test_a_pod_that_ended_has_all_images_or_lost_its_node_takes_no_place() -> None:
    story = Story(complete={("n2", IMAGE): 0.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    for name in ("n1", "n2", "n3", "n4"):
        story.see("Node", "ADDED", node(name, taints=()))
    story.see("Pod", "ADDED", pod("a", on="n1", phase="Succeeded"))
    story.see("Pod", "ADDED", pod("b", on="n2"))
    story.see("Pod", "ADDED", pod("c", on="n3"))
    story.see("Node", "DELETED", node("n3", taints=()))
    story.see("Pod", "ADDED", pod("d", on="n4"))
    assert story.rules == []
    assert story.witness.checked[MANY] == 4


def test_a_percentage_is_of_the_nodes_that_match() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch(rollout={"maxParallel": "50%"}))
    for name in ("n1", "n2", "n3", "n4"):
        story.see("Node", "ADDED", node(name, taints=()))
    story.see("Pod", "ADDED", pod("a", on="n1"))
    story.see("Pod", "ADDED", pod("b", on="n2"))
    assert story.rules == []
    story.see("Pod", "ADDED", pod("c", on="n3"))
    assert story.rules == [MANY]


def test_joining_nodes_have_a_bound_of_their_own() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch(gate={"maxParallel": 2}))
    for name in ("n1", "n2", "n3"):
        story.see("Node", "ADDED", node(name))
    story.see("Node", "ADDED", node("n4", taints=()))
    for name in ("n1", "n2", "n4"):
        story.see("Pod", "ADDED", pod(f"p-{name}", on=name))
    assert story.rules == []
    story.see("Pod", "ADDED", pod("p-n3", on="n3"))
    assert story.rules == [MANY]


def test_two_puller_pods_for_the_same() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node())
    story.see("Pod", "ADDED", pod("a"))
    story.see("Pod", "ADDED", pod("b"))
    assert story.rules == ["one puller pod per node, prefetch and group"]


def test_a_second_puller_pod_after_the_first_has_ended_or_goes() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node())
    story.see("Pod", "ADDED", pod("a", phase="Failed"))
    story.see("Pod", "ADDED", pod("b", **GOING))
    story.see("Pod", "ADDED", pod("c"))
    assert story.rules == []


CANCELLED = "a running pull is not cancelled"


def cancelled(story: Story, before: Body, *, by: str = OPERATOR) -> None:
    story.see("Node", "ADDED", node())
    story.see("Pod", "ADDED", before)
    story.wrote("delete", "pods", before["metadata"]["name"], user=by)
    going = copy.deepcopy(before)
    going["metadata"] |= GOING
    story.see("Pod", "MODIFIED", going)
    story.see("Pod", "DELETED", going)


def test_the_operator_cancels_a_pull() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    cancelled(story, pod())
    assert story.rules == [CANCELLED]


def test_a_pull_that_somebody_else_cancels() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    cancelled(story, pod(), by="system:serviceaccount:kube-system:pod-garbage-collector")
    assert story.rules == []


def test_a_pull_that_failed_is_over_or_not_wanted_may_go() -> None:
    failing = pod(waiting=("ImagePullBackOff", "connection refused"))
    for before in (failing, pod(phase="Succeeded"), pod(annotations={OBSERVED: "uid-n1/earlier"})):
        story = Story()
        story.see("ImagePrefetch", "ADDED", prefetch())
        cancelled(story, before)
        assert story.rules == []
    nobody = Story()
    cancelled(nobody, pod())
    assert nobody.rules == []
    edited = Story()
    edited.see("ImagePrefetch", "ADDED", prefetch(images=("other:1",)))
    cancelled(edited, pod())
    assert edited.rules == []


def test_a_pull_may_be_cancelled_when_its_time_is_over() -> None:
    for timeout, expected in ((20, []), (3600, [CANCELLED])):
        story = Story()
        story.see("ImagePrefetch", "ADDED", prefetch(retry={"timeoutSeconds": timeout}))
        cancelled(story, pod())
        assert story.rules == expected


# ---- status, gaps


def test_a_status_without_bounds() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", {**prefetch(), "status": {"failures": [{}] * 11}})
    story.see("ImagePrefetch", "MODIFIED", {**prefetch(), "status": {"message": "x" * 16384}})
    assert story.rules == ["the status is bounded"] * 2


def test_the_rules_hold_across_a_gap_in_the_watch() -> None:
    story = Story()
    story.relist("ImagePrefetch", prefetch())
    story.relist("Node", node())
    story.relist("Node", node(taints=()))
    assert sorted(story.rules) == ["foreign taints are not touched", EARLY]
    story.now += 10.0
    story.relist("Pod", pod("a"), pod("b"))
    assert story.rules[-1] == "one puller pod per node, prefetch and group"


def test_what_vanished_in_a_gap_is_gone_and_what_stayed_is_not_judged_again() -> None:
    story = Story(complete={("n1", IMAGE): 0.0})
    first = prefetch()
    first["metadata"]["resourceVersion"] = "7"
    story.relist("ImagePrefetch", first, prefetch("q", images=("other:1",)))
    applied = story.witness.checked["the status is bounded"]
    story.relist("ImagePrefetch", first)
    assert story.witness.checked["the status is bounded"] == applied + 1  # q, as it went
    story.relist("Node", node())
    story.relist("Node", node(taints=(FOREIGN,)))
    assert story.rules == []


@pytest.mark.parametrize("known", [True, False])
def test_what_a_gap_changed_may_have_been_so_when_others_acted_in_it(known: bool) -> None:
    """The ImagePrefetch was deleted in the gap, and so the pod; also where it was made only in
    the same part of the history."""
    story = Story()
    body = prefetch()
    body["metadata"]["resourceVersion"] = "7"
    if known:
        story.see("ImagePrefetch", "ADDED", body)
    story.see("Node", "ADDED", node())
    story.now += 20.0
    pod_at, version = story.now + 10.0, story.version + 1
    story.told.written.append(Write(pod_at, OPERATOR, "delete", "pods", "ipf-p-1"))
    made = [] if known else [Seen("ImagePrefetch", "ADDED", version, story.now, body)]
    story.witness.read(
        [
            *made,
            Seen("Pod", "ADDED", version + 1, story.now, pod()),
            Seen("Pod", "MODIFIED", version + 2, pod_at, pod(**GOING)),
            Snapshot("ImagePrefetch", version + 3, pod_at + 5.0, (), story.now + 1.0),
        ]
    )
    assert story.witness.checked[CANCELLED] == 1
    assert story.rules == []


def test_writes_that_a_gap_has_hidden_are_counted() -> None:
    story = Story()
    story.relist("Node", node())
    story.wrote("patch", "nodes", "n1")
    story.wrote("patch", "nodes", "n1")
    story.relist("Node", node(taints=(GATE, FOREIGN), labels={"a": "b"}))
    assert story.witness.unseen == 1
    assert str(Violation("rule", 0.0, "x")) == "VIOLATION at 00:00:00.000: rule: x"
