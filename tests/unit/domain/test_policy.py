"""The effects of a spec beyond the bounds that administrators set. Each bound is tested in
tests/unit/chart/test_prefetch_policy.py, together with the API server's answer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from imagegate.domain import credentials, match, status, workloads
from imagegate.domain.actions import ReleaseReason
from imagegate.domain.disk import on_disk
from imagegate.domain.facts import (
    POLICY_VIOLATION,
    GatePolicy,
    GateSpec,
    ImageFacts,
    ImageSize,
    ImageSource,
    LayerFacts,
    NodeState,
    Place,
    Prefetch,
)
from imagegate.domain.gate import Problem, heartbeat_is_fresh
from imagegate.domain.policy import PrefetchPolicy, too_large
from imagegate.domain.share import Share
from imagegate.domain.workloads import Found, Listing, Workload, find, joined
from tests.unit.domain.cases import decide, gated, node, prefetch, view

FORBIDDEN = (POLICY_VIOLATION, 'spec.images: "evil.test/a:1" is not from an allowed registry')
FAIL_CLOSED = GateSpec(policy=GatePolicy.FAIL_CLOSED)


def test_forbidden_prefetch_holds_no_node_not_even_under_fail_closed() -> None:
    forbidden = prefetch(gate=FAIL_CLOSED, invalid=FORBIDDEN)
    held = view(gated(), problems=(Problem(forbidden, ": ".join(FORBIDDEN)),), frozen={"llm"})
    (patch,) = decide(held).actions
    assert patch.release is ReleaseReason.UNMATCHED  # type: ignore[union-attr]
    assert "evil.test/a:1" in patch.message  # type: ignore[union-attr]


def test_forbidden_prefetch_does_not_release_a_node_that_another_holds() -> None:
    forbidden = prefetch("evil", gate=FAIL_CLOSED, invalid=FORBIDDEN)
    held = view(gated(), Share(prefetch()), problems=(Problem(forbidden, "no"),), frozen={"evil"})
    assert decide(held).held


def test_another_problem_still_holds_under_fail_closed() -> None:
    unusable = prefetch(gate=FAIL_CLOSED, invalid=("NamespaceNotAllowed", "no"))
    held = view(gated(), problems=(Problem(unusable, "no"),), frozen={"llm"})
    assert decide(held).held


# ---- bytes of a node


def sized(*layers: tuple[int, int]) -> ImageFacts:
    """An image of layers with these keys and sizes."""
    facts = tuple(LayerFacts(size, "gzip", key) for key, size in layers)
    total = sum(size for _, size in layers)
    return ImageFacts(sizes={"linux/amd64": ImageSize(total, total, facts)})


BOUND = PrefetchPolicy(max_gigabytes_per_node=7)
GIGABYTE = 10**9


def two(**changes: Any) -> Prefetch:
    made = prefetch("llm", "reg.test/a:1", "reg.test/b:1")
    images = tuple(dataclasses.replace(i, listed_as=i.reference) for i in made.images)
    return dataclasses.replace(made, images=images, **changes)


def test_message_about_too_large_images_has_their_size_and_the_bound() -> None:
    known = {"reg.test/a:1": sized((1, GIGABYTE)), "reg.test/b:1": sized((2, GIGABYTE + 1))}
    assert on_disk(2 * GIGABYTE) == 7 * GIGABYTE
    why = too_large(two(), known, BOUND)
    assert why is not None
    assert "7.0 GB unpacked on a node (linux/amd64)" in why
    assert "more than 7 GB in prefetchPolicy.maxGigabytesPerNode" in why


def test_shared_layers_count_once_and_unknown_sizes_not_at_all() -> None:
    known = {"reg.test/a:1": sized((1, 2 * GIGABYTE)), "reg.test/b:1": sized((1, 2 * GIGABYTE))}
    assert too_large(two(), known, BOUND) is None
    assert too_large(two(), {"reg.test/a:1": ImageFacts(problem="away")}, BOUND) is None
    assert too_large(two(), {}, BOUND) is None
    assert too_large(two(), {"reg.test/a:1": sized((1, 10**15))}, PrefetchPolicy()) is None


def test_largest_platform_is_checked_against_the_bound() -> None:
    small, large = sized((1, 1)).sizes["linux/amd64"], sized((2, 10**12)).sizes["linux/amd64"]
    facts = ImageFacts(sizes={"linux/amd64": small, "linux/arm64": large})
    assert "linux/arm64" in (too_large(two(), {"reg.test/a:1": facts}, BOUND) or "")


# ---- images of workloads


SERVING = Place("Deployment", "serving")


def attack(*images: str, policy: PrefetchPolicy) -> tuple[Prefetch, Found]:
    """A tenant's Deployment names these images; the prefetch has a secret that opens more."""
    source = workloads.named(SERVING, "tenant")
    tenant = Workload("tenant", {}, tuple(workloads.image(each, source) for each in images))
    asked = prefetch(
        images=(
            dataclasses.replace(workloads.image("reg.test/own:1", ""), pull_secrets=("pull",)),
        ),
        images_from=(ImageSource(SERVING.kind, SERVING.namespace),),
        pull_secrets=("pull",),
    )
    found = find(asked, {SERVING: Listing((tenant,), read=True)}, policy)
    assert found is not None
    return joined(asked, found), found


def secrets(asked: Prefetch) -> dict[str, tuple[str, ...]]:
    return {image.reference: image.pull_secrets for image in asked.images}


def test_workload_of_a_tenant_gets_no_image_by_the_secret_of_the_prefetch() -> None:
    asked, found = attack("reg.test/other-team/private:1", policy=PrefetchPolicy())
    assert secrets(asked) == {"reg.test/own:1": ("pull",), "reg.test/other-team/private:1": ()}
    # Not in one pod, because the kubelet uses the secrets of a pod for all of its images.
    assert {group.images: group.pull_secrets for group in asked.groups} == {
        ("reg.test/own:1",): ("pull",),
        ("reg.test/other-team/private:1",): (),
    }
    everything, _, text = workloads.condition(found)
    assert everything
    assert "without spec.imagePullSecrets, as their registries are not in" in text
    assert "reg.test/other-team/private:1" in text


def test_secrets_are_used_for_the_registries_that_are_named() -> None:
    policy = PrefetchPolicy(images_from_pull_secret_registries=("reg.test/team",))
    asked, found = attack("reg.test/team/a:1", "reg.test/team-b/a:1", policy=policy)
    assert secrets(asked) == {
        "reg.test/own:1": ("pull",),
        "reg.test/team/a:1": ("pull",),
        "reg.test/team-b/a:1": (),
    }
    assert found.without_secrets == ("reg.test/team-b/a:1",)


def test_image_named_by_the_spec_and_by_a_workload_keeps_the_secrets_of_the_spec() -> None:
    asked, found = attack("reg.test/own:1", policy=PrefetchPolicy(puller_has_secrets=True))
    assert secrets(asked) == {"reg.test/own:1": ("pull",)}
    assert found.without_secrets == found.without_puller_secrets == ()


def test_workload_gets_no_image_by_the_secrets_of_the_puller() -> None:
    policy = PrefetchPolicy(
        puller_has_secrets=True, images_from_pull_secret_registries=("reg.test/team",)
    )
    asked, found = attack("reg.test/private:1", "reg.test/team/a:1", policy=policy)
    assert set(secrets(asked)) == {"reg.test/own:1", "reg.test/team/a:1"}
    everything, reason, text = workloads.condition(found)
    assert (everything, reason) == (False, "ImagesNotAllowed")
    assert "puller.imagePullSecrets of the chart (reg.test/private:1)" in text


def test_image_of_a_workload_outside_the_registries_is_left_out() -> None:
    policy = PrefetchPolicy(registries=("reg.test",))
    asked, found = attack("evil.test/a:1", "reg.test/b:1", policy=policy)
    assert set(secrets(asked)) == {"reg.test/own:1", "reg.test/b:1"}
    # Ready must not be True for half of the images, because rollouts may wait for it.
    everything, reason, text = workloads.condition(found)
    assert (everything, reason) == (False, "ImagesNotAllowed")
    assert "evil.test/a:1" in text


# ---- credentials that no kubelet verifies


def private() -> Prefetch:
    image = prefetch().images[0]
    return prefetch(images=(dataclasses.replace(image, pull_secrets=("ml-pull",)),))


@pytest.mark.parametrize(
    ("kubelet", "exposed"), [((1, 34), True), ((1, 35), False), ((2, 0), False), ((0, 0), False)]
)
def test_images_with_secrets_on_old_kubelets_are_reported(
    kubelet: tuple[int, int], exposed: bool
) -> None:
    on = node(kubelet=kubelet)
    assert decide(view(on, Share(private()))).standings["llm"].exposed is exposed
    assert not decide(view(on, Share(prefetch()))).standings["llm"].exposed


def test_skipped_node_exposes_no_image() -> None:
    on = node(kubelet=(1, 34), unschedulable=True)
    assert match.skipped(on, gated=False)
    assert not decide(view(on, Share(private()))).standings["llm"].exposed


def test_condition_exists_only_while_nodes_are_exposed() -> None:
    def conditions(exposed: int) -> dict[str, Any]:
        tally = status.Tally({NodeState.CACHED: 3}, gated=0, exposed=exposed)
        wanted = status.prefetch_status(private(), tally, 0.0)
        return {each["type"]: each for each in wanted["conditions"]}

    assert "CredentialsVerified" not in conditions(0)
    condition = conditions(3)["CredentialsVerified"]
    assert (condition["status"], condition["reason"]) == ("False", "KubeletTooOld")
    assert "on 3 nodes" in condition["message"]
    assert condition["message"] == credentials.condition(3)[3]


# ---- the heartbeat


@pytest.mark.parametrize(
    ("age", "alive"), [(0, True), (899, True), (900, False), (-899, True), (-900, False)]
)
def test_old_and_future_heartbeats_are_not_fresh(age: float, alive: bool) -> None:
    assert heartbeat_is_fresh(1_000_000.0 - age, 1_000_000.0, 900.0) is alive
