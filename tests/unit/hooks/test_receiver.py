"""From a delivery to the check of a tag; the test controls the clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from imagegate.hooks.asking import Asker
from imagegate.hooks.directory import Directory
from imagegate.hooks.event import Answer, Delivery, Malformed, Parsed, Push, Receiver, Source, Told
from imagegate.hooks.event import Unverified as Forged
from imagegate.hooks.limits import Bucket
from imagegate.hooks.receiver import BURST, PushReceiver
from imagegate.hooks.sources import SOURCES
from tests.unit.hooks.test_sources import payload

APP = Push("team/app", "1", "registry.example:5000")


async def verified(delivery: Delivery, _: object, fetch: Callable[[str], object]) -> None:
    if delivery.headers.get("forged"):
        raise Forged("it was forged")


def scripted(delivery: Delivery, _: Receiver) -> Parsed:
    """A source whose JSON body says what `parse` returns."""
    if delivery.body == b"malformed":
        raise Malformed("not what it should be")
    script = json.loads(delivery.body)
    pushes = tuple(Push(*each) for each in script.get("pushes", ()))
    answer = Answer(200, b"shake", {"x": "y"}) if script.get("answer") else None
    return Parsed(pushes, script.get("id", ""), answer, script.get("visit", ""))


class World:
    def __init__(self, tmp_path: Path, *entries: Receiver, images: int = 2) -> None:
        self.now = 1000.0
        self.asked: list[tuple[float, Push]] = []
        self.fetched: list[str] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.images = images
        sources = {**SOURCES, "scripted": Source("scripted", scripted, verified)}
        self.has_room = True
        self.asker = Asker(
            sources, pushed=self._pushed, observe=self._observe, clock=lambda: self.now
        )
        self.receiver = PushReceiver(
            Directory(tmp_path / "receivers.yaml", sources),
            sources,
            hand_over=self._hand_over,
            fetch=self._fetch,
            observe=self._observe,
            clock=lambda: self.now,
        )
        self.to = Receiver("mine", "scripted", "p" * 16)

    def _observe(self, source: str, outcome: str) -> None:
        self.outcomes.update([(source, str(outcome))])

    def _hand_over(self, told: Sequence[Told]) -> bool:
        if self.has_room:
            for each in told:
                self.asker._ask(each)
        return self.has_room

    def _pushed(self, push: Push) -> int:
        self.asked.append((self.now, push))
        return self.images

    async def _fetch(self, url: str, *, fresh: bool = False) -> bytes:
        self.fetched.append(url)
        return b""

    async def deliver(
        self,
        body: bytes | Mapping[str, object],
        to: Receiver | None = None,
        method: str = "POST",
        **headers: str,
    ) -> Answer:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.receiver.receive(to or self.to, Delivery(headers, text, method))

    def count(self, outcome: str) -> int:
        return sum(n for (_, each), n in self.outcomes.items() if each == outcome)

    async def pass_time(self, seconds: float) -> None:
        """Advances the clock and lets `run` do the checks that become due."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.asker._debounce.next() or end)
            task = asyncio.create_task(self.asker.run())
            while not (task.done() or self.asker._wake._waiters):
                await asyncio.sleep(0.001)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_push_is_checked_immediately_and_twice_later(world: World) -> None:
    to = Receiver("r", "distribution", "p" * 16, secrets=("the-secret",))
    answer = await world.deliver(payload("distribution"), to, authorization="Bearer the-secret")
    assert answer == Answer(202)
    assert world.asked == [(1000.0, APP)]
    await world.pass_time(60)
    assert world.asked == [(1000.0, APP), (1001.0, APP), (1006.0, APP)]
    assert world.outcomes == {("distribution", "forwarded"): 1, ("distribution", "asked"): 1}


async def test_burst_of_pushes_causes_no_additional_checks(world: World) -> None:
    for number in range(50):
        await world.deliver({"pushes": [["a", "1", "r.example"]], "id": str(number)})
    await world.pass_time(60)
    push = Push("a", "1", "r.example")
    assert world.asked == [(1000.0, push), (1001.0, push), (1006.0, push)]
    assert (world.count("asked"), world.count("debounced")) == (1, 49)


async def test_repeated_delivery_is_checked_once(world: World) -> None:
    for _ in range(3):
        answer = await world.deliver({"pushes": [["a", "1", "r.example"]], "id": "1"})
        assert answer.status == 202
        await world.pass_time(20)
    assert world.count("asked") == 1
    assert world.count("duplicate") == 2
    # The same id at another receiver is another delivery.
    await world.deliver(
        {"pushes": [["a", "1", "r.example"]], "id": "1"}, Receiver("o", "scripted", "q" * 16)
    )
    assert world.count("duplicate") == 2


async def test_delivery_without_an_id_is_never_a_duplicate(world: World) -> None:
    for _ in range(2):
        await world.deliver({"pushes": [["a", "1", "r.example"]]})
        await world.pass_time(20)
    assert world.count("asked") == 2


async def test_push_without_a_matching_image_is_not_remembered(tmp_path: Path) -> None:
    world = World(tmp_path, images=0)
    for number in range(100):
        await world.deliver({"pushes": [[f"a{number}", "1", "r.example"]]})
        world.now += 1
    assert world.count("unmatched") == 100
    assert len(world.asker._debounce) == 0


async def test_forged_delivery_gets_404(world: World) -> None:
    answer = await world.deliver({"pushes": [["a", "1", "r.example"]]}, forged="yes")
    assert answer == Answer(404, b"not found\n")
    assert world.asked == []
    assert world.outcomes == {("scripted", "unverified"): 1}


async def test_malformed_delivery_gets_202_so_that_it_is_not_repeated(world: World) -> None:
    assert (await world.deliver(b"malformed")).status == 202
    assert (await world.deliver(b"malformed", method="OPTIONS")).status == 404
    assert world.outcomes == {("scripted", "malformed"): 2}


async def test_options_gets_404_unless_the_source_answers_it(world: World) -> None:
    assert await world.deliver({"answer": True}, method="OPTIONS") == Answer(
        200, b"shake", {"x": "y"}
    )
    assert (await world.deliver({}, method="OPTIONS")).status == 404
    pushes = {"pushes": [["a", "1", "r.example"]]}
    assert (await world.deliver(pushes, method="OPTIONS")).status == 404
    assert world.asked == []


async def test_rate_limit_counts_only_verified_deliveries(world: World) -> None:
    for _ in range(1000):
        await world.deliver({}, forged="yes")
    statuses = Counter([(await world.deliver({})).status for _ in range(300)])
    assert statuses == {202: BURST, 429: 300 - BURST}
    assert (await world.deliver({}, Receiver("o", "scripted", "q" * 16))).status == 202
    world.now += 1
    assert (await world.deliver({})).status == 202


async def test_refusals_are_logged_at_a_limited_rate(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        await world.deliver({}, forged="yes")
    assert len(caplog.records) == 1
    world.now += 10
    await world.deliver({}, forged="yes")
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("registry", "event", "expected"),
    [
        ("", ("team/app", "1", "r.example"), ("team/app", "1", "r.example")),
        ("pinned.example", ("team/app", "1", "10.0.0.1:80"), ("team/app", "1", "pinned.example")),
        ("pinned.example", ("team/app", "", ""), ("team/app", "", "pinned.example")),
        ("", ("nginx", "1", "docker.io"), ("library/nginx", "1", "docker.io")),
        ("", ("nginx", "1", "registry-1.docker.io"), ("library/nginx", "1", "docker.io")),
        ("docker.io", ("a/b", "1", "x"), ("a/b", "1", "docker.io")),
        ("r.example/docker", ("team/app", "1", "x"), ("docker/team/app", "1", "r.example")),
        ("r.example:5000/a/b", ("c", "", ""), ("a/b/c", "", "r.example:5000")),
        ("r.example/docker", ("", "1", ""), None),
        ("r.example/docker", ("../app", "1", ""), None),
        ("", ("team/app", "1", ""), None),
        ("", ("team/app", "1", "unqualified"), None),
        ("pinned.example", ("", "1", ""), None),
        ("pinned.example", ("../other", "1", ""), None),
        ("pinned.example", ("Team/App", "1", ""), None),
        ("pinned.example", ("app:2", "", ""), None),
        ("pinned.example", ("app@sha256:" + "0" * 64, "", ""), None),
        ("pinned.example", ("app", "1@sha256:" + "0" * 64, ""), None),
        ("pinned.example", ("app", "sha256:00", ""), None),
        ("", ("app", "1", "evil.example/pinned.example"), None),
        ("", ("app", "1", "https://r.example"), None),
        ("", ("app\n", "1", "r.example"), None),
    ],
)
async def test_push_is_checked_only_under_a_valid_image_name(
    world: World,
    registry: str,
    event: tuple[str, str, str],
    expected: tuple[str, str, str] | None,
) -> None:
    to = Receiver("r", "scripted", "p" * 16, registry=registry)
    await world.deliver({"pushes": [event]}, to)
    assert [push for _, push in world.asked] == ([Push(*expected)] if expected else [])
    assert world.count("asked" if expected else "ignored") == 1


async def test_number_of_checks_per_delivery_is_limited(world: World) -> None:
    await world.deliver({"pushes": [[f"a{n}", "1", "r.example"] for n in range(5000)]})
    assert len(world.asked) == 100


async def test_push_that_got_503_is_accepted_when_it_is_repeated(
    world: World,
) -> None:
    push = {"pushes": [["a", "1", "r.example"]], "id": "1"}
    world.has_room = False
    assert (await world.deliver(push)).status == 503
    world.has_room = True
    assert (await world.deliver(push)).status == 202
    assert len(world.asked) == 1
    assert (world.count("unavailable"), world.count("duplicate")) == (1, 0)


async def test_state_of_a_removed_receiver_is_deleted(world: World, tmp_path: Path) -> None:
    for number in range(10):
        to = Receiver(f"r{number}", "scripted", "p" * 16)
        await world.deliver({}, to)
        await world.deliver({}, to, forged="yes")
    assert len(world.receiver._buckets) == len(world.receiver._logged) == 10
    entry = {"name": "r3", "source": "quay", "path": "p" * 16}
    (tmp_path / "receivers.yaml").write_text(yaml.safe_dump([entry]))
    task = asyncio.create_task(world.receiver.run())
    while len(world.receiver._logged) > 1:
        await asyncio.sleep(0.001)
    task.cancel()
    assert set(world.receiver._buckets) == {"r3"}


async def test_subscription_is_confirmed_by_a_get_of_its_url(world: World) -> None:
    await world.deliver({"visit": "https://sns.example/confirm"})
    await asyncio.sleep(0.01)
    assert world.fetched == ["https://sns.example/confirm"]


async def test_changed_secrets_take_effect_without_a_restart(tmp_path: Path) -> None:
    world, file = World(tmp_path), tmp_path / "receivers.yaml"

    def write(*secrets: str) -> None:
        entry = {"name": "r", "source": "harbor", "path": "p" * 16, "secrets": list(secrets)}
        file.write_text(yaml.safe_dump([entry]))

    async def status(secret: str) -> int:
        world.receiver._directory.reload()
        to = world.receiver._directory.find("p" * 16)
        assert to is not None
        return (await world.deliver(payload("harbor"), to, authorization=secret)).status

    write("secret-one")
    assert [await status("secret-one"), await status("secret-two")] == [202, 404]
    write("secret-two", "secret-one")
    assert [await status("secret-one"), await status("secret-two")] == [202, 202]
    file.write_text("- broken")
    assert [await status("secret-one"), await status("secret-two")] == [202, 202]
    write("secret-two")
    assert [await status("secret-one"), await status("secret-two")] == [404, 202]


async def test_exception_in_a_check_does_not_end_the_loop(world: World) -> None:
    await world.deliver({"pushes": [["a", "1", "r.example"], ["b", "1", "r.example"]]})
    asked: list[Push] = []

    def broken(push: Push) -> int:
        asked.append(push)
        raise RuntimeError("a defect")

    world.asker._pushed = broken
    await world.pass_time(3)
    assert len(asked) == 2
    await world.pass_time(10)
    assert len(asked) == 4


def test_burst_limit_allows_a_registry_that_reports_each_blob() -> None:
    bucket = Bucket(20, BURST)
    assert all(bucket.take(1.0) for _ in range(150))
