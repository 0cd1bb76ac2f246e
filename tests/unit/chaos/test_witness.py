"""The witness of the chaos tests reports each violation, and nothing else.

Each test gives it a history of the API server, containerd and the audit log. These tests are needed
because every fault looks harmless to a witness that reports nothing.
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
    """The evidence of containerd and the audit log, as a test sets it."""

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
    """A history step by step. Each version is seen 10 s after the previous version."""

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


def test_removed_foreign_taint_is_a_violation() -> None:
    story = Story()
    story.see("Node", "ADDED", node())
    story.see("Node", "MODIFIED", node(taints=(GATE,)))
    assert story.rules == ["foreign taints are not touched"]


def test_changed_value_of_a_foreign_taint_is_a_violation() -> None:
    story = Story()
    story.see("Node", "ADDED", node())
    story.see("Node", "MODIFIED", node(taints=(GATE, {**FOREIGN, "value": "y"})))
    assert story.rules == ["foreign taints are not touched"]


def test_kubernetes_taints_may_change_but_not_in_the_same_write_as_our_taint() -> None:
    not_ready = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
    story = Story()
    story.see("Node", "ADDED", node(taints=(GATE, not_ready)))
    story.see("Node", "MODIFIED", node(taints=(GATE,)))
    assert story.rules == []
    story.see("Node", "MODIFIED", node(taints=(GATE, not_ready)))
    story.see("Node", "MODIFIED", node(taints=()))
    assert story.rules == ["foreign taints are not touched"]


def test_new_node_with_the_same_name_may_have_other_taints() -> None:
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


def test_release_without_the_images_is_a_violation() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    released(story)
    assert story.rules == [EARLY]


def test_release_with_the_images_is_accepted() -> None:
    story = Story(complete={("n1", IMAGE): 1_025.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    released(story)
    assert story.rules == []
    assert story.witness.checked[EARLY] == 1


def test_audit_log_shows_a_release_before_the_image_is_complete() -> None:
    """The watch event was late. Only the audit log shows that the patch came first."""
    story = Story(complete={("n1", IMAGE): 1_039.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node())
    story.told.written.append(Write(1_038.0, OPERATOR, "patch", "nodes", "n1"))
    story.see("Node", "MODIFIED", node(taints=(FOREIGN,)))
    assert story.rules == [EARLY]


def test_watch_event_may_arrive_before_the_response_to_the_patch() -> None:
    """The last write that began before the event is the release, and not an earlier completed
    write."""
    story = Story(complete={("n1", IMAGE): 1_039.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node())
    story.told.written += [
        Write(1_038.0, OPERATOR, "patch", "nodes", "n1", began=1_037.9),
        Write(1_041.0, OPERATOR, "patch", "nodes", "n1", began=1_039.5),
    ]
    assert story.see("Node", "MODIFIED", node(taints=(FOREIGN,))) == 1_040.0
    assert story.rules == []


def test_two_leaders_may_create_twice_as_many_pods_and_no_more() -> None:
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


def test_release_requires_the_images_of_every_gating_prefetch() -> None:
    story = Story(complete={("n1", IMAGE): 0.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("ImagePrefetch", "ADDED", prefetch("q", images=(IMAGE, "other:1")))
    released(story)
    assert story.rules == [EARLY]


def test_prefetch_that_does_not_gate_or_match_or_is_deleted_does_not_count() -> None:
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


def test_prefetch_younger_than_the_lag_causes_no_violation() -> None:
    story = Story()
    story.see("Node", "ADDED", node())
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "MODIFIED", node(taints=(FOREIGN,)), after=1.0)
    assert story.rules == []


def test_fail_open_may_release_at_the_timeout_and_not_before() -> None:
    for timeout, expected in ((60, [EARLY]), (30, [])):
        story = Story()
        story.see("ImagePrefetch", "ADDED", prefetch(gate={"timeoutSeconds": timeout}))
        released(story)
        assert story.rules == expected


def test_fail_closed_may_never_release_without_the_images() -> None:
    story = Story()
    gate = {"policy": "FailClosed", "timeoutSeconds": 1}
    story.see("ImagePrefetch", "ADDED", prefetch(gate=gate))
    story.see("Pod", "ADDED", pod(waiting=("ErrImagePull", "not found")))
    released(story)
    assert story.rules == [EARLY]


def test_fail_open_may_release_when_the_failure_is_permanent() -> None:
    for message, expected in (("app:1: not found", []), ("connection refused", [EARLY])):
        story = Story()
        story.see("ImagePrefetch", "ADDED", prefetch())
        story.see("Node", "ADDED", node())
        story.see("Pod", "ADDED", pod(waiting=("ErrImagePull", message)))
        story.see("Node", "MODIFIED", node(taints=(FOREIGN,)))
        assert story.rules == expected


def test_suspended_gate_may_release_every_node() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    gate = {"metadata": {"name": "default"}, "spec": {"suspend": True}}
    story.see("Node", "ADDED", node())
    story.see("NodeGate", "MODIFIED", gate)
    story.see("Node", "MODIFIED", node(taints=(FOREIGN,)))
    assert story.rules == []


def test_missing_containerd_events_are_no_violation_but_are_counted() -> None:
    story = Story(deaf={"n1"})
    story.see("ImagePrefetch", "ADDED", prefetch())
    released(story)
    assert story.rules == []
    assert story.witness.unknown > 0


def test_finished_pod_proves_the_images_of_a_simulated_node() -> None:
    for phase, expected in (("Pending", [EARLY]), ("Succeeded", [])):
        story = Story()
        story.see("ImagePrefetch", "ADDED", prefetch())
        story.see("Node", "ADDED", node(labels={SIMULATED: "true"}))
        story.see("Pod", "ADDED", pod(phase=phase))
        story.see("Node", "MODIFIED", node(labels={SIMULATED: "true"}, taints=(FOREIGN,)))
        assert story.rules == expected


# ---- labels


def test_label_without_the_images_is_a_violation() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node(taints=()))
    story.see("Node", "MODIFIED", node(taints=(), labels=CACHED))
    assert story.rules == ["a label says what the node holds"]


def test_label_with_an_unknown_target_is_a_violation() -> None:
    story = Story(complete={("n1", IMAGE): 0.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node(taints=()))
    story.see("Node", "MODIFIED", node(taints=(), labels={LABEL + "p": "0" * 12}))
    assert story.rules == ["a label says what the node holds"]


def test_label_with_a_target_that_was_just_replaced_is_accepted() -> None:
    story = Story(complete={("n1", IMAGE): 0.0})
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node(taints=()))
    story.see("ImagePrefetch", "MODIFIED", prefetch(images=("other:1",)))
    story.see("Node", "MODIFIED", node(taints=(), labels=CACHED))
    assert story.rules == []


def test_label_with_a_target_of_a_gap_is_accepted() -> None:
    """The watch of ImagePrefetches came back later than that of Nodes."""
    story = Story(complete={("n1", IMAGE): 0.0})
    story.see("ImagePrefetch", "ADDED", prefetch(images=("other:1",)))
    story.see("Node", "ADDED", node(taints=()))
    version, now = story.version, story.now + 20.0
    labelled = node(taints=(), labels=CACHED)
    labelled["metadata"]["resourceVersion"] = str(version + 2)
    edited = prefetch()
    edited["metadata"]["resourceVersion"] = str(version + 1)
    story.witness.read(
        [
            Seen("Node", "MODIFIED", version + 2, now, labelled),
            Snapshot("ImagePrefetch", version + 3, now + 0.7, (edited,), now - 1.0),
        ]
    )
    assert story.rules == []


# ---- pulls

MANY = "at most maxParallel nodes of a prefetch pull"


def test_more_pulling_nodes_than_max_parallel_are_a_violation() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    for name in ("n1", "n2"):
        story.see("Node", "ADDED", node(name, taints=()))
    story.see("Pod", "ADDED", pod("a", on="n1"))
    story.see("Pod", "ADDED", pod("b", on="n2"))
    assert story.rules == [MANY]


def test_pod_that_ended_or_has_all_images_or_lost_its_node_uses_no_slot() -> None:
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


def test_percentage_applies_to_the_matching_nodes() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch(rollout={"maxParallel": "50%"}))
    for name in ("n1", "n2", "n3", "n4"):
        story.see("Node", "ADDED", node(name, taints=()))
    story.see("Pod", "ADDED", pod("a", on="n1"))
    story.see("Pod", "ADDED", pod("b", on="n2"))
    assert story.rules == []
    story.see("Pod", "ADDED", pod("c", on="n3"))
    assert story.rules == [MANY]


def test_joining_nodes_have_their_own_limit() -> None:
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


def test_two_puller_pods_for_one_node_prefetch_and_group_are_a_violation() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    story.see("Node", "ADDED", node())
    story.see("Pod", "ADDED", pod("a"))
    story.see("Pod", "ADDED", pod("b"))
    assert story.rules == ["one puller pod per node, prefetch and group"]


def test_second_puller_pod_is_accepted_when_the_first_has_ended_or_is_being_deleted() -> None:
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


def test_pull_cancelled_by_the_operator_is_a_violation() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    cancelled(story, pod())
    assert story.rules == [CANCELLED]


def test_pull_cancelled_by_another_user_is_accepted() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", prefetch())
    cancelled(story, pod(), by="system:serviceaccount:kube-system:pod-garbage-collector")
    assert story.rules == []


def test_pull_that_failed_or_ended_or_is_not_wanted_may_be_cancelled() -> None:
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


def test_pull_may_be_cancelled_after_its_timeout() -> None:
    for timeout, expected in ((20, []), (3600, [CANCELLED])):
        story = Story()
        story.see("ImagePrefetch", "ADDED", prefetch(retry={"timeoutSeconds": timeout}))
        cancelled(story, pod())
        assert story.rules == expected


# ---- status, gaps


def test_oversized_status_is_a_violation() -> None:
    story = Story()
    story.see("ImagePrefetch", "ADDED", {**prefetch(), "status": {"failures": [{}] * 11}})
    story.see("ImagePrefetch", "MODIFIED", {**prefetch(), "status": {"message": "x" * 16384}})
    assert story.rules == ["the status is bounded"] * 2


def test_rules_apply_across_a_gap_in_the_watch() -> None:
    story = Story()
    story.relist("ImagePrefetch", prefetch())
    story.relist("Node", node())
    story.relist("Node", node(taints=()))
    assert sorted(story.rules) == ["foreign taints are not touched", EARLY]
    story.now += 10.0
    story.relist("Pod", pod("a"), pod("b"))
    assert story.rules[-1] == "one puller pod per node, prefetch and group"


def test_gap_removes_missing_objects_and_does_not_judge_unchanged_objects_again() -> None:
    story = Story(complete={("n1", IMAGE): 0.0})
    first = prefetch()
    first["metadata"]["resourceVersion"] = "7"
    story.relist("ImagePrefetch", first, prefetch("q", images=("other:1",)))
    applied = story.witness.checked["the status is bounded"]
    story.relist("ImagePrefetch", first)
    assert story.witness.checked["the status is bounded"] == applied + 1  # for the deletion of q
    story.relist("Node", node())
    story.relist("Node", node(taints=(FOREIGN,)))
    assert story.rules == []


@pytest.mark.parametrize("known", [True, False])
def test_change_in_a_gap_may_precede_the_actions_in_the_gap(known: bool) -> None:
    """The ImagePrefetch was deleted in the gap, and therefore the pod. The same applies if the
    ImagePrefetch was created in the same part of the history."""
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


def test_writes_hidden_by_a_gap_are_counted() -> None:
    story = Story()
    story.relist("Node", node())
    story.wrote("patch", "nodes", "n1")
    story.wrote("patch", "nodes", "n1")
    story.relist("Node", node(taints=(GATE, FOREIGN), labels={"a": "b"}))
    assert story.witness.unseen == 1
    assert str(Violation("rule", 0.0, "x")) == "VIOLATION at 00:00:00.000: rule: x"
