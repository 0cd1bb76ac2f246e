"""Failed pulls: the reported reason, the back-off, and the requests that the registry gets."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.cluster.provider import Capability, NodeOptions
from tests.e2e.installation import NAMESPACE, PULLERS, Installation
from tests.e2e.watching import Watch

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.faulty import FaultyRegistry

PODS = f"/api/v1/namespaces/{PULLERS}/pods"
RETRY = {"limit": 4, "minSeconds": 2, "maxSeconds": 16}
DELAYS = (2.0, 4.0, 8.0, 16.0)
"""The back-off of RETRY. After the fourth attempt only the heartbeat retries, every 16 s."""
SLACK = 8.0
"""Seconds on a slow machine to handle a failure, delete the pod and create another."""


class Case(NamedTuple):
    name: str
    kind: Any
    operation: Any
    reason: str
    permanent: bool = False


CASES = (
    Case("gone", 404, "manifest", "ImageNotFound", permanent=True),
    Case("locked", 401, "manifest", "Unauthorized", permanent=True),
    Case("down", 503, "manifest", "RegistryError"),
    Case("reset", "reset", "blob", "RegistryUnreachable"),
    Case("short", "truncated", "blob", "TransferBroken"),
)


class Attempt(NamedTuple):
    """The life of one puller pod, as a watch saw it."""

    begun: float
    failed: float
    ended: float


@pytest.fixture
def faulty(cluster: LocalCluster) -> Iterator[FaultyRegistry]:
    cluster.require(Capability.REGISTRIES)
    yield cluster.faulty
    cluster.faulty.clear()


def attempts(watch: Watch, prefetch: str) -> list[Attempt]:
    lives: dict[str, list[float]] = {}
    for seen in list(watch.sightings):
        metadata = seen.body["metadata"]
        if (metadata.get("labels") or {}).get("imagegate.dev/prefetch") == prefetch:
            life = lives.setdefault(metadata["uid"], [seen.at, float("inf"), float("inf")])
            if "ErrImagePull" in str(seen.body["status"].get("containerStatuses")):
                life[1] = min(life[1], seen.at)
            if seen.type == "DELETED":
                life[2] = seen.at
    return [Attempt(*life) for life in sorted(lives.values())]


def failure(imagegate: Installation, name: str) -> Mapping[str, Any]:
    failures = (imagegate.get(name).get("status") or {}).get("failures") or [{}]
    return dict(failures[0])


def test_failed_pulls_are_reported_and_retried_with_back_off_until_they_succeed(
    cluster: LocalCluster, imagegate: Installation, faulty: FaultyRegistry
) -> None:
    one = {"matchLabels": {"kubernetes.io/hostname": "node-1"}}
    images = {
        case.name: cluster.push("medium", f"retry/{case.name}:1", registry="faulty", seed=80 + at)
        for at, case in enumerate(CASES)
    }
    for case in CASES:
        faulty.fault(
            case.kind,
            repository=f"retry/{case.name}",
            operation=case.operation,
            after_bytes=None if isinstance(case.kind, int) else 8 << 20,
        )
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(cluster, PODS))
        for name, image in images.items():
            stack.enter_context(
                imagegate.prefetching(f"retry-{name}", image, nodeSelector=one, retry=RETRY)
            )

        def tried_enough(case: Case) -> bool:
            tried = attempts(watch, f"retry-{case.name}")
            return len(tried) >= (2 if case.permanent else len(DELAYS) + 2)

        cluster.wait(lambda: all(map(tried_enough, CASES)), "the heartbeat after the limit", 180)
        for case in CASES:
            _check(imagegate, faulty, watch, case, images[case.name])
        faulty.clear()
        for case in CASES:
            imagegate.wait_ready(f"retry-{case.name}")
            assert failure(imagegate, f"retry-{case.name}") == {}
        assert all(cluster.node("node-1").has_image(image) for image in images.values())


def _check(
    imagegate: Installation, faulty: FaultyRegistry, watch: Watch, case: Case, image: str
) -> None:
    name = f"retry-{case.name}"
    tried = attempts(watch, name)
    between = [later.begun - earlier.failed for earlier, later in pairwise(tried)]
    requests = faulty.requests(f"retry/{case.name}")
    heads = [request.at for request in requests if request.method == "HEAD"]
    print(
        f"{case.name}: {len(tried)} attempts, {len(requests)} requests,"
        f" pauses {', '.join(f'{gap:.1f}' for gap in between)} s"
    )
    said = failure(imagegate, name)
    assert (said["reason"], said["node"], said["image"]) == (case.reason, "node-1", image)
    assert said["attempts"] in (len(tried) - 1, len(tried))
    assert re.search(r"faulty\.registry\.test|short read|connection reset", said["message"])
    assert imagegate.counts(name)["failed"] == 1
    expected = [DELAYS[-1]] * len(between) if case.permanent else [*DELAYS, *DELAYS[-1:] * 9]
    for gap, delay in zip(between, expected, strict=False):
        assert 0.9 * delay <= gap <= 1.1 * delay + SLACK
    # There are never two pulls of an image at a time, and no pull outside a pod's life.
    assert all(earlier.ended < later.begun for earlier, later in pairwise(tried))
    for at in heads:
        assert any(a.begun - 0.5 <= at <= a.ended + 0.5 for a in tried), "a pull without a pod"
    # A request belongs to the attempt that began last, because the next may begin immediately.
    begun = [a.begun - 0.5 for a in tried]
    per_attempt = [
        sum(since <= at < until for at in heads)
        for since, until in pairwise([*begun, float("inf")])
    ]
    assert max(per_attempt[:-1]) == min(per_attempt[:-1]) <= 2, "the kubelet retried by itself"


@pytest.mark.parametrize("ending", ["hangup", "restart"])
def test_stalled_pull_is_reported_and_blocks_a_second_pull(
    cluster: LocalCluster, imagegate: Installation, faulty: FaultyRegistry, ending: str
) -> None:
    """The kubelet never cancels a pull, not even when its pod is deleted (kubernetes#113606)."""
    name, repository = f"stall-{ending}", f"retry/stall-{ending}"
    seed = {"hangup": 88, "restart": 89}[ending]
    image = cluster.push("tiny", f"{repository}:1", registry="faulty", seed=seed)
    faulty.fault("stall", repository=repository, operation="blob", after_bytes=4096, times=1)
    with (
        Watch(cluster, PODS) as watch,
        imagegate.prefetching(
            name,
            image,
            nodeSelector={"matchLabels": {"kubernetes.io/hostname": "node-2"}},
            retry={"limit": 4, "minSeconds": 1, "maxSeconds": 2, "timeoutSeconds": 5},
        ),
    ):
        cluster.wait(
            lambda: failure(imagegate, name).get("reason") == "PullTimeout", "PullTimeout", 30
        )
        time.sleep(8)  # several times the back-off
        (stalled,) = [r for r in faulty.requests(repository) if r.fault]
        assert stalled.ended is None
        assert len(attempts(watch, name)) == 1
        assert imagegate.counts(name)["pulling"] == 1
        over = time.time()
        if ending == "hangup":
            faulty.clear()  # the runtime resumes and completes the pull
        else:
            cluster.node("node-2").restart("containerd")
        imagegate.wait_ready(name)
        cluster.wait(lambda: len(attempts(watch, name)) == 2, "the pod that pins the image", 30)
        first, second = attempts(watch, name)
        assert over < first.ended < second.begun
        heads = [r for r in faulty.requests(repository) if r.method == "HEAD"]
        print(
            f"{name}: hung for {over - stalled.at:.0f} s, the pod gone {first.ended - over:.1f} s"
            f" after that, {len(heads)} pulls"
        )
        assert len(heads) == {"hangup": 1, "restart": 2}[ending]


def test_throttling_halves_the_parallel_pulls_and_recovery_restores_them(
    cluster: LocalCluster, imagegate: Installation, faulty: FaultyRegistry
) -> None:
    names = [f"throttled-{number}" for number in range(4)]
    labels = {"pool": "throttled"}
    for name in names:
        cluster.add_node(name, NodeOptions(labels=labels), wait=False)
    try:
        for name in names:
            in_service(cluster, imagegate, name)
        _throttle(cluster, imagegate, faulty, labels)
    finally:
        for name in names:
            cluster.remove_node(name)


def _throttle(
    cluster: LocalCluster,
    imagegate: Installation,
    faulty: FaultyRegistry,
    labels: dict[str, str],
) -> None:
    image = cluster.push("medium", "retry/throttled:1", registry="faulty", seed=90)
    faulty.fault(429, repository="retry/throttled", operation="manifest")
    allowed: list[int] = []

    def look() -> int:
        value = imagegate.metrics().get('imagegate_rollout_allowed{prefetch="throttled"}')
        if value and (not allowed or value != allowed[-1]):
            allowed.append(int(value))
        return allowed[-1] if allowed else 0

    with imagegate.prefetching(
        "throttled",
        image,
        nodeSelector={"matchLabels": labels},
        retry={"limit": 20, "minSeconds": 1, "maxSeconds": 4},
        rollout={"maxParallel": "100%", "seeds": 4},
    ):
        cluster.wait(lambda: look() == 1, "the allowance down to one", 90)
        assert failure(imagegate, "throttled")["reason"] == "Throttled"
        faulty.clear()
        cluster.wait(lambda: look() == 4, "the full allowance again", 90)
        imagegate.wait_ready("throttled")
        print(f"imagegate_rollout_allowed: {' -> '.join(map(str, allowed))}")
        assert allowed[:3] == [4, 2, 1]
        assert allowed[2:] == sorted(allowed[2:])
    log = cluster.kubectl("-n", NAMESPACE, "logs", imagegate.leader())
    lines = [json.loads(line) for line in log.splitlines() if '"the registry refuses' in line]
    limits = [line["limit"] for line in lines if line["prefetch"] == "throttled"]
    assert limits == [2, 1]


def test_pod_that_the_kubelet_rejects_is_retried_until_the_node_has_capacity(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    cases = {"pods": {"maxPods": 1}, "cpu": {}}
    retry = {"limit": 3, "minSeconds": 1, "maxSeconds": 3}
    images = {
        case: cluster.push("tiny", f"retry/{case}:1", seed=95 + at) for at, case in enumerate(cases)
    }
    nodes = {case: f"full-{case}" for case in cases}
    try:
        for case, kubelet in cases.items():
            options = NodeOptions(labels={"full": case}, kubelet=kubelet)
            cluster.add_node(nodes[case], options, wait=False)
        with ExitStack() as stack:
            for case, name in nodes.items():
                in_service(cluster, imagegate, name)
                _fill(cluster, name)
                stack.enter_context(
                    imagegate.prefetching(
                        f"full-{case}",
                        images[case],
                        nodeSelector={"matchLabels": {"full": case}},
                        retry=retry,
                    )
                )
            cluster.wait(
                lambda: all(failure(imagegate, f"full-{c}").get("attempts", 0) >= 3 for c in cases),
                "three pods rejected on each",
                60,
            )
            for case in cases:
                said = failure(imagegate, f"full-{case}")
                print(f"{case}: {said['attempts']} attempts: {said['message']}")
                assert said["reason"] == "PodRejected"
                assert said["message"].startswith(f"OutOf{case}: ")
            cluster.kubectl(
                "delete", "pods", "-l", "filler=yes", "--force", "--grace-period=0", "--wait"
            )
            for case in cases:
                imagegate.wait_ready(f"full-{case}")
                assert cluster.node(nodes[case]).has_image(images[case])
    finally:
        cluster.kubectl("delete", "pods", "-l", "filler=yes", "--force", "--grace-period=0")
        for name in nodes.values():
            cluster.remove_node(name)


def in_service(cluster: LocalCluster, imagegate: Installation, node: str) -> None:
    cluster.wait(cluster.node(node).ready, f"{node} Ready", 90)
    cluster.wait(lambda: not imagegate.held(node), f"{node} released", 30)


def _fill(cluster: LocalCluster, node: str) -> None:
    """Use all CPU of the node, and one of its pods."""
    cpu = cluster.node(node).object()["status"]["allocatable"]["cpu"]
    filler = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"filler-{node}", "labels": {"filler": "yes"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {
                    "name": "filler",
                    "image": "imagegate.test/pause:1",
                    "imagePullPolicy": "Never",
                    "resources": {"requests": {"cpu": cpu}},
                }
            ],
        },
    }
    cluster.apply(filler)
    path = f"/api/v1/namespaces/default/pods/filler-{node}"
    cluster.wait(lambda: cluster.api.get(path)["status"]["phase"] == "Running", "filler", 60)
