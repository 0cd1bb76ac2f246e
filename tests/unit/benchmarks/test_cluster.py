"""The benchmark on a real API server: what it reads from logs and metrics, and what it plays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster import audit, metrics
from benchmarks.cluster.__main__ import notes, table
from benchmarks.cluster.plan import Chain, Joining, Plan, Rollout, Slots, Write
from benchmarks.cluster.profile import times

USER = "system:serviceaccount:imagegate-system:imagegate"
PODS = "/api/v1/namespaces/imagegate-pullers/pods"


def event(verb: str, resource: str, at: float, **more: Any) -> dict[str, Any]:
    """A request of the audit log that took 10 ms, in a minute of 2026."""
    stamp = "2026-11-28T12:00:{:09.6f}Z"
    resource, _, sub = resource.partition("/")
    return {
        "stage": "ResponseComplete",
        "requestURI": more.pop("uri", "/"),
        "verb": verb,
        "user": {"username": more.pop("user", USER)},
        "objectRef": {"resource": resource, "name": more.pop("name", ""), "subresource": sub},
        "responseStatus": {"code": more.pop("code", 200)},
        "requestReceivedTimestamp": stamp.format(at),
        "stageTimestamp": stamp.format(at + 0.01),
        "requestObject": more.pop("body", None),
        **more,
    }


def patched(node: str, *more: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"op": "test", "path": "/metadata/uid", "value": f"uid-{node}"}, *more]


def pod(name: str, node: str) -> dict[str, Any]:
    owner = {"kind": "Node", "name": node, "uid": f"uid-{node}"}
    return {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": {"nodeName": node}}


LABEL = {"op": "add", "path": "/metadata/labels/cached.imagegate.dev~1bench", "value": "1"}
RELEASE = {"op": "remove", "path": "/spec/taints/0"}
STATUS = {"metadata": {"uid": "u", "resourceVersion": "7"}, "status": {"target": "1"}}
EVENTS = (
    event("create", "pods", 1.0, uri=PODS, code=201, body=pod("ipf-a", "a")),
    event("create", "pods", 1.1, uri=PODS, code=201, body=pod("ipf-b", "b")),
    event("update", "leases", 1.2),
    event("patch", "nodes", 1.3, name="a", code=409, body=patched("a", LABEL)),
    event("patch", "imageprefetches/status", 1.4, uri="/status", body=STATUS),
    # kwok's patch is answered after the operator's POST was received, and before its answer.
    event("patch", "pods/status", 3.0, name="ipf-a", user="kwok"),
    event("patch", "pods/status", 3.5, name="ipf-b", user="kwok"),
    event("patch", "nodes", 3.04, name="a", uri="/a", body=patched("a", LABEL, RELEASE)),
    event("patch", "nodes", 3.7, name="b", uri="/b", body=patched("b", LABEL)),
    event("create", "events", 3.8, uri="/events", body={"metadata": {"name": "a.1"}}),
    event("watch", "nodes", 0.5, stage="ResponseStarted"),
    event("watch", "nodes", 0.5),
    event("create", "pods", 0.1, uri=f"{PODS}?dryRun=All", body=pod("probe", "")),
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.log"
    lines = "".join(f"{json.dumps(each)}\n" for each in EVENTS)
    path.write_text(f'earlier\n{lines}{{"unfinished', encoding="utf-8")
    return path


def requests(log: Path) -> list[audit.Request]:
    return audit.read(log, len("earlier\n"))


def test_requests_are_counted_by_verb_and_resource_and_a_watch_once(log: Path) -> None:
    assert audit.counted(requests(log), USER) == {
        "create events": 1,
        "create pods": 3,
        "patch imageprefetches/status": 1,
        "patch nodes": 2,
        "patch nodes 409": 1,
        "update leases": 1,
        "watch nodes": 1,
    }


def test_latency_is_from_the_success_of_the_pod_to_the_answer_of_the_patch(log: Path) -> None:
    released, labelled = audit.latencies(requests(log), USER)
    assert released == [pytest.approx(0.04)]
    assert labelled == [pytest.approx(0.2)]


def test_plan_has_the_successful_writes_of_each_node_in_their_order(log: Path) -> None:
    known = audit.Known({"a": "zone-1", "b": "zone-2"}, joining={"b"})
    plan = audit.plan(requests(log), USER, known)
    a, b = plan.chains
    assert (a.node, a.zone, a.uid, a.joins) == ("a", "zone-1", "uid-a", False)
    assert [(w.method, w.path, w.pod) for w in a.writes] == [
        ("POST", PODS, "ipf-a"),
        ("PATCH", "/a", ""),
    ]
    assert b.joins
    (before, status), (last, said) = plan.others
    assert (before, json.loads(status.body)) == (2, {"status": {"target": "1"}})
    assert (last, json.loads(said.body)["metadata"]["name"]) == (5, "a.1f")
    assert known.pods == {"ipf-a": "a", "ipf-b": "b"}


def test_pod_of_an_earlier_scenario_is_deleted_by_the_chain_of_its_node() -> None:
    known = audit.Known({"a": "zone-1"}, pods={"ipf-old": "a"})
    lines = [json.dumps(event("delete", "pods", 1.0, name="ipf-old", uri=f"{PODS}/ipf-old"))]
    plan = audit.plan(audit._parse([line.encode() for line in lines]), USER, known)
    assert [write.method for write in plan.chains[0].writes] == ["DELETE"]
    assert plan.chains[0].writes[0].body == "{}"


def test_plan_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    plan = Plan(
        [Chain("a", "zone-1", "u", joins=True, writes=[Write("POST", PODS, "{}", pod="ipf-a")])],
        [(1, Write("PATCH", "/status"))],
        ["/api/v1/nodes"],
        Rollout(10, 1, 2),
        Joining((10, 20), 2, 3.0, "key"),
        {"zone-1": 1},
    )
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert not plan.empty
    assert Plan().empty


def started(slots: Slots) -> list[str]:
    return [chain.node for chain in slots.start()]


def test_slots_start_seeds_and_then_a_multiple_of_what_has_succeeded() -> None:
    slots = Slots(Rollout(parallel=100, seeds=1, fanout=2), {"a": 6, "b": 2})
    chains = {f"{zone}{n}": Chain(f"{zone}{n}", zone, "", False) for n in range(6) for zone in "ab"}
    for chain in chains.values():
        slots.add(chain)
    assert started(slots) == ["a0", "b0"]
    assert started(slots) == []
    slots.succeeded(chains["a0"])
    assert started(slots) == ["a1", "a2"]
    slots.succeeded(chains["a1"])
    assert started(slots) == ["a3", "a4", "a5"], "four slots, one of them busy"


def test_slots_never_exceed_max_parallel() -> None:
    slots = Slots(Rollout(parallel=3, seeds=9, fanout=2), {"a": 6, "b": 6})
    for number in range(6):
        for zone in "ab":
            slots.add(Chain(f"{zone}{number}", zone, "", False))
    assert len(started(slots)) == 3


def test_without_a_rollout_every_chain_starts() -> None:
    slots = Slots(None, {"a": 2})
    for name in "xy":
        slots.add(Chain(name, "a", "", False))
    assert started(slots) == ["x", "y"]


EXPOSITION = """\
# HELP seconds_bucket a histogram
seconds_bucket{resource="nodes",verb="PATCH",le="0.1"} 4
seconds_bucket{resource="nodes",verb="PATCH",le="0.2"} 8
seconds_bucket{resource="nodes",verb="PATCH",le="+Inf"} 8
seconds_bucket{resource="pods",verb="PATCH",le="+Inf"} 5
seconds_bucket_other 1
up 1
"""


def test_quantile_of_a_histogram_is_interpolated_over_what_was_observed_in_between() -> None:
    samples = metrics.parse(EXPOSITION.splitlines(), "seconds_bucket", "up")
    assert samples["up", frozenset()] == 1
    after = metrics.buckets(samples, resource="nodes")
    assert after == {0.1: 4, 0.2: 8, float("inf"): 8}
    assert metrics.quantile({}, after, 0.5) == pytest.approx(0.1)
    assert metrics.quantile({}, after, 0.75) == pytest.approx(0.15)
    before = {0.1: 4.0, 0.2: 4.0, float("inf"): 4.0}
    assert metrics.quantile(before, after, 0.5) == pytest.approx(0.15)
    assert metrics.quantile(after, after, 0.5) is None


def test_quantile_beyond_the_last_bound_is_the_last_bound() -> None:
    assert metrics.quantile({}, {0.1: 0, 0.2: 0, float("inf"): 3}, 0.5) == 0.2


def test_profile_adds_up_the_lines_of_a_function_and_leaves_out_waiting_threads() -> None:
    stacks = ["run (a.py:1);loads (json.py:3) 6", "loads (json.py:9) 2", "run (a.py:2) 2"]
    stacks.append("run (a.py:7);_worker (concurrent/futures/thread.py:81) 90")
    own, total = times(stacks)
    assert own == [("loads (json.py)", 0.8), ("run (a.py)", 0.2)]
    assert dict(total) == {"run (a.py)": 0.8, "loads (json.py)": 0.8}


def test_table_has_a_line_and_the_notes_of_every_scenario() -> None:
    nothing = {"count": 0, "p50": None, "p99": None}
    row = {
        "scenario": "rollout-100",
        "nodes": 1000,
        "seconds": 13.0,
        "cpu": 2.5,
        "peak": 100 * 2**20,
        "works": 2020,
        "requests": {"create pods": 1000, "patch nodes": 1020},
        "gone": nothing,
        "patch": {"p50": 0.004, "p99": 0.02},
        "told": {"bytes": {"nodes": 2**20}, "lag": {"p50": 0.001, "p99": 0.01, "max": 0.02}},
        "notes": {},
        "floor": {"seconds": 10.0},
    }
    idle = {**row, "scenario": "idle", "seconds": None, "floor": None}
    idle |= {"notes": {"percent of a core": 0.5}, "profile": {"own": [("loads (json.py)", 0.8)]}}
    first, second = table([row, idle])[2:]
    assert first.split()[:9] == [
        "rollout-100",
        "1000",
        "13.0",
        "10.0",
        "1.30",
        "2.50",
        "2.50",
        "100",
        "2.02",
    ]
    assert second.split()[:4] == ["idle", "1000", "2.50", "2.50"]
    assert notes([row, idle]) == ["idle: percent of a core 0.50", "idle:  80.0 % loads (json.py)"]
