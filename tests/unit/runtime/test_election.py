"""Leader election: there is one leader, and it knows when its leadership ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from imagegate.kube import errors
from imagegate.kube.leases import LeaseRecord, Leases
from imagegate.runtime import election
from imagegate.runtime.clock import Clock
from imagegate.runtime.election import Elector, Leadership, Observation, Step, decide, observe
from tests.simulation import loop
from tests.unit.memory_api import MemoryApi

HELD = LeaseRecord(holder="a", duration=15, renew_time="t1", version="5")


class FakeTime:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def clock(self) -> Clock:
        return Clock(now=lambda: self.seconds, monotonic=lambda: self.seconds)


@pytest.mark.parametrize(
    ("record", "silent", "step"),
    [
        (None, 0, Step.CREATE),
        (HELD, 0, Step.WAIT),
        (HELD, 14.9, Step.WAIT),
        (HELD, 15, Step.TAKE),
        (LeaseRecord(holder="", version="6"), 0, Step.TAKE),
        (LeaseRecord(holder="b", version="6"), 0, Step.RENEW),
    ],
)
def test_decision_of_candidate_b(record: LeaseRecord | None, silent: float, step: Step) -> None:
    assert decide(Observation(record, 100.0), "b", 100.0 + silent) is step


def test_a_holder_counts_as_silent_since_its_record_last_changed() -> None:
    first = observe(None, HELD, 10.0)
    assert observe(first, HELD, 20.0).at == 10.0
    renewed = LeaseRecord(holder="a", duration=15, renew_time="t2", version="6")
    assert observe(first, renewed, 20.0).at == 20.0


def electors(api: MemoryApi, time: FakeTime) -> tuple[Elector, Elector]:
    client: Any = api
    leases = Leases(client, "ns", "imagegate")
    a, b = (
        Elector(leases, identity, clock := time.clock(), Leadership(clock)) for identity in "ab"
    )
    return a, b


async def test_one_of_two_leads_and_the_other_takes_over_from_a_silent_leader() -> None:
    api, time = MemoryApi(), FakeTime()
    a, b = electors(api, time)
    assert await a._try()
    assert not await b._try()
    a._leadership.fence()
    with pytest.raises(errors.NotLeader):
        b._leadership.fence()
    time.seconds += election.RENEW_DEADLINE
    with pytest.raises(errors.NotLeader):
        a._leadership.fence()
    assert not await b._try(), "the lease itself is still valid"
    time.seconds += election.LEASE_SECONDS - election.RENEW_DEADLINE
    assert await b._try()
    assert (
        api.objects["/apis/coordination.k8s.io/v1/namespaces/ns/leases/imagegate"]["spec"][
            "leaseTransitions"
        ]
        == 1
    )
    assert not await a._try()
    assert a.holder == "b"


async def test_released_lease_is_taken_immediately() -> None:
    api, time = MemoryApi(), FakeTime()
    a, b = electors(api, time)
    assert await a._try()
    assert not await b._try()
    await a.release()
    assert await b._try()


async def test_failed_renewals_end_the_leadership_in_time() -> None:
    api, time = MemoryApi(), FakeTime()
    a, _ = electors(api, time)
    assert await a._try()

    def cut(method: str, path: str) -> None:
        raise errors.Unavailable(f"{method} {path}", 0, "no route to host")

    api.before = cut
    time.seconds += election.RENEW_DEADLINE - 0.1
    assert not await a._try()
    a._leadership.fence()
    time.seconds += 0.1
    with pytest.raises(errors.NotLeader):
        a._leadership.fence()


async def test_renewal_takes_one_request() -> None:
    api, time = MemoryApi(), FakeTime()
    a, _ = electors(api, time)
    assert await a._try()
    api.requests.clear()
    assert await a._try()
    assert [method for method, _ in api.requests] == ["PUT"]


async def test_hold_returns_when_another_process_took_the_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(election, "RETRY_PERIOD", 0.0)
    api, time = MemoryApi(), FakeTime()
    a, _ = electors(api, time)
    assert await a._try()
    path = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/imagegate"
    api.change(path, lambda body: body["spec"].update(holderIdentity="thief"))
    await asyncio.wait_for(a.hold(), 1)
    assert not a.leading


async def test_address_that_older_versions_wrote_is_removed() -> None:
    api, time = MemoryApi(), FakeTime()
    a, _ = electors(api, time)
    assert await a._try()
    path = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/imagegate"
    address = {"imagegate.dev/hooks-address": "10.0.0.1:8081"}
    api.change(path, lambda body: body["metadata"].update(annotations=address))
    for _ in range(2):  # The first round gets a Conflict.
        await a._try()
    assert "annotations" not in api.objects[path]["metadata"]


def in_virtual_time(api: MemoryApi) -> tuple[Elector, Elector]:
    client: Any = api
    running = asyncio.get_running_loop()
    clock = Clock(now=running.time, monotonic=running.time)
    leases = Leases(client, "ns", "imagegate")
    a, b = (Elector(leases, identity, clock, Leadership(clock)) for identity in "ab")
    return a, b


@pytest.mark.parametrize("phase", [step / 10 for step in range(10)])
def test_standby_leads_at_most_12_seconds_after_the_last_renewal(phase: float) -> None:
    """The last renewal may come at any moment between two reads of the standby."""
    took, requests = list[float](), list[int]()

    async def main() -> None:
        api = MemoryApi()
        a, b = in_virtual_time(api)
        assert await a._try()
        standby = asyncio.create_task(b.acquire())
        await asyncio.sleep((3 + phase) * election.STANDBY_PERIOD)
        assert await a._try()
        api.requests.clear()
        renewed = loop.elapsed()
        await standby
        assert not a.leading, "the leader stops to write before the standby leads"
        took.append(loop.elapsed() - renewed)
        requests.append(len(api.requests))

    loop.run(main, 1)
    assert election.LEASE_SECONDS <= took[0] < 12
    assert requests[0] <= 20


def test_candidate_whose_request_fails_waits_before_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = list[int]()

    async def main() -> None:
        api = MemoryApi()
        a, b = in_virtual_time(api)
        assert await a._try()
        standby = asyncio.create_task(b.acquire())
        await asyncio.sleep(5.0)

        async def refused(*_: object) -> LeaseRecord:
            raise errors.Forbidden("PUT lease", 403, "no")

        monkeypatch.setattr(Leases, "replace", refused)
        await asyncio.sleep(election.LEASE_SECONDS)
        api.requests.clear()
        await asyncio.sleep(10 * election.STANDBY_PERIOD)
        reads.append(len(api.requests))
        assert not standby.done()
        standby.cancel()

    loop.run(main, 1)
    assert 8 <= reads[0] <= 12
