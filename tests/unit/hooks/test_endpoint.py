"""The port over HTTP: its answers, and that no sender can block it for other senders."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import io
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import aiohttp
import pytest
import yaml

from imagegate.hooks import connections
from imagegate.hooks import endpoint as module
from imagegate.hooks.connections import Connections
from imagegate.hooks.directory import Directory
from imagegate.hooks.endpoint import Endpoint
from imagegate.hooks.event import Delivery, Parsed, Push, Receiver, Source, Told
from imagegate.hooks.receiver import PushReceiver
from imagegate.hooks.sources import SOURCES
from tests.cluster import ports
from tests.unit.hooks.test_sources import payload

PATH, GENERIC, SLOW, BROKEN = "d" * 16, "g" * 16, "s" * 16, "b" * 16
MOST = SOURCES["distribution"].max_body
SECRET = "the-secret-of-them-all"


class Slow:
    """A source whose verification waits for `let_go`."""

    let_go: asyncio.Event


async def slowly(_: Delivery, __: Receiver, ___: object) -> None:
    await Slow.let_go.wait()


async def brokenly(_: Delivery, __: Receiver, ___: object) -> None:
    raise RecursionError("a defect")


def nothing(_: Delivery, __: Receiver) -> Parsed:
    return Parsed()


MORE = {
    **SOURCES,
    "slow": Source("slow", nothing, slowly),
    "broken": Source("broken", nothing, brokenly),
}


class Served:
    """The port of one process."""

    def __init__(self, file: Path) -> None:
        self.asked: list[Push] = []
        self.outcomes: Counter[str] = Counter()
        self.port = ports.one()
        self.connections = Connections()

        def observe(_: str, outcome: str) -> None:
            self.outcomes.update([str(outcome)])

        async def fetch(url: str, *, fresh: bool = False) -> bytes:
            raise AssertionError

        def hand_over(told: Sequence[Told]) -> bool:
            self.asked += [each.push for each in told]
            return True

        directory = Directory(file, MORE)
        directory.reload()
        self.endpoint = Endpoint(
            directory,
            PushReceiver(directory, MORE, hand_over=hand_over, fetch=fetch, observe=observe),
            MORE,
            observe,
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str = PATH) -> str:
        return f"http://{self.address}/hooks/{path}"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as opened:
        yield opened


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    file = tmp_path / "receivers.yaml"
    entries = [
        {
            "name": "d",
            "source": "distribution",
            "path": PATH,
            "registry": "r.example",
            "secrets": [SECRET],
        },
        {"name": "g", "source": "generic", "path": GENERIC, "secrets": [SECRET]},
        {"name": "s", "source": "slow", "path": SLOW, "pathOnly": True},
        {"name": "b", "source": "broken", "path": BROKEN, "pathOnly": True},
    ]
    file.write_text(yaml.safe_dump(entries))
    Slow.let_go = asyncio.Event()
    one = Served(file)
    for _ in range(10):
        with contextlib.suppress(OSError):  # Another process took the port.
            site = await connections.serve(one.endpoint.app(), one.port, one.connections)
            break
        one.port = ports.one()
    yield one
    await site.cleanup()


AUTHORIZED = {"Authorization": f"Bearer {SECRET}"}
Seen = tuple[int, bytes, dict[str, str]]


async def post(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes = b"{}",
    method: str = "POST",
    **headers: str,
) -> Seen:
    # BytesIO, because aiohttp warns about large bodies of plain bytes.
    async with session.request(method, url, data=io.BytesIO(body), headers=headers) as response:
        shown = {k: v for k, v in response.headers.items() if k not in ("Date", "Connection")}
        return response.status, await response.read(), shown


async def test_push_is_accepted_and_handed_over(
    session: aiohttp.ClientSession, served: Served
) -> None:
    status, body, _ = await post(session, served.url(), payload("distribution"), **AUTHORIZED)
    assert (status, body) == (202, b"")
    assert served.asked == [Push("team/app", "1", "r.example")]


async def test_unknown_paths_and_failed_verifications_get_the_same_404(
    session: aiohttp.ClientSession, served: Served
) -> None:
    body = payload("distribution")
    root = f"http://{served.address}"
    forged = {"X-Signature": "sha256=" + "0" * 64}
    answers = [
        await post(session, served.url("x" * 16), body, **AUTHORIZED),
        await post(session, f"{root}/", body, **AUTHORIZED),
        await post(session, f"{root}/metrics", method="GET"),
        await post(session, f"{root}/healthz", method="GET"),
        await post(session, f"{root}/{PATH}", body, **AUTHORIZED),
        await post(session, f"{root}/hooks/hooks/{PATH}", body, **AUTHORIZED),
        await post(session, served.url() + "/", body, **AUTHORIZED),
        await post(session, served.url(PATH.upper()), body, **AUTHORIZED),
        await post(session, served.url(), body),
        await post(session, served.url(), body, Authorization="Bearer other"),
        await post(session, served.url(), b"", "GET", **AUTHORIZED),
        await post(session, served.url(), body, method="PUT", **AUTHORIZED),
        await post(session, served.url(), body, method="OPTIONS", **AUTHORIZED),
        await post(session, served.url(GENERIC), payload("generic"), **forged),
        await post(session, served.url(BROKEN), body),
        await post(session, served.url("x" * 16), b"x" * (MOST + 1)),
    ]
    assert [status for status, _, _ in answers] == [404] * len(answers)
    assert {(body, tuple(sorted(headers.items()))) for _, body, headers in answers} == {
        (answers[0][1], tuple(sorted(answers[0][2].items())))
    }
    assert served.asked == []


async def test_too_large_body_gets_413(session: aiohttp.ClientSession, served: Served) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b"x" * (MOST // 16)

    assert (await post(session, served.url(), b" " * MOST, **AUTHORIZED))[0] == 202
    assert (await post(session, served.url(), b" " * (MOST + 1), **AUTHORIZED))[0] == 413
    async with session.post(served.url(), data=chunks(), headers=AUTHORIZED) as response:
        assert response.status == 413


@pytest.mark.parametrize("source", SOURCES.values(), ids=lambda each: each.name)
def test_body_limit_of_each_source_is_below_the_receiver_limit(source: Source) -> None:
    """Sources without a proof get a lower limit, because anybody may send to them."""
    assert source.max_body <= 1 << 20 < module.MOST_BYTES_OF_RECEIVER
    if not source.proofs:
        assert source.max_body <= 256 << 10


async def test_incomplete_body_is_rejected_at_its_deadline(
    session: aiohttp.ClientSession, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = f"POST /hooks/{PATH} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{{"
    writer.write(head.encode())
    line = await asyncio.wait_for(reader.readline(), 5)
    assert b"404" in line
    writer.close()
    await writer.wait_closed()
    assert served.endpoint._memory.taken == 0


async def test_compressed_body_is_not_decompressed(
    session: aiohttp.ClientSession, served: Served
) -> None:
    """The signature covers the bytes as sent, and a small body must not become a large one."""
    body = payload("generic")
    value = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-Signature": value, "Content-Encoding": "gzip"}
    assert (await post(session, served.url(GENERIC), body, **headers))[0] == 202
    assert served.asked == [Push("team/app", "1.2", "registry.example")]


async def test_invalid_request_gets_400_or_404(
    session: aiohttp.ClientSession, served: Served
) -> None:
    for text in (
        f"POST /hooks/{PATH}%00 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{{}}",
        f"POST /hooks/{PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: \xff\xfe\r\n\r\n",
        "POST /hooks/%ff%fe HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
        f"POST /hooks/{PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Basic \u00e4\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(text.encode("latin-1"))
        line = await asyncio.wait_for(reader.readline(), 5)
        assert line.split()[1] in (b"404", b"400"), (text, line)
        writer.close()
        await writer.wait_closed()


async def test_too_many_concurrent_requests_to_a_receiver_get_503(
    session: aiohttp.ClientSession, served: Served
) -> None:
    most = module.AT_ONCE_OF_RECEIVER
    slow = [asyncio.create_task(post(session, served.url(SLOW))) for _ in range(most)]
    while served.endpoint._places.taken < most:
        await asyncio.sleep(0.001)
    answers = [await post(session, served.url(SLOW)) for _ in range(3)]
    assert [(status, headers["Retry-After"]) for status, _, headers in answers] == [(503, "5")] * 3
    assert (await post(session, served.url("x" * 16)))[0] == 404
    assert (await post(session, served.url(), b"{}", **AUTHORIZED))[0] == 202, "another receiver"
    Slow.let_go.set()
    assert [(await each)[0] for each in slow] == [202] * most
    assert (await post(session, served.url(SLOW)))[0] == 202


# ---- malicious senders


Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def half_sent(port: int, text: str, number: int, peer: str = "127.0.0.1") -> list[Opened]:
    """Opens connections and sends only the beginning of a request on each."""
    opened = []
    for _ in range(number):
        both = await asyncio.open_connection("127.0.0.1", port, local_addr=(peer, 0))
        both[1].write(text.encode())
        opened.append(both)
    return opened


async def still_open(opened: list[Opened]) -> int:
    """The number of connections that the server has not closed."""

    async def is_closed(reader: asyncio.StreamReader) -> bool:
        try:
            async with asyncio.timeout(0.05):
                while await reader.read(1000):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    return (await asyncio.gather(*(is_closed(reader) for reader, _ in opened))).count(False)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(3):
        while not done():
            await asyncio.sleep(0.01)


async def close(opened: list[Opened]) -> None:
    for _, writer in opened:
        writer.transport.abort()


HEADERS = f"POST /hooks/{PATH} HTTP/1.1\r\nHost: h\r\nX-Slow: "
BODY = f"POST /hooks/{PATH} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{{"


async def test_headers_have_a_deadline(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    opened = await half_sent(served.port, HEADERS, 20) + await half_sent(served.port, "", 20)
    assert await still_open(opened) == 40
    await asyncio.sleep(0.8)
    assert await still_open(opened) == 0
    assert len(served.connections) == 0
    await close(opened)


async def test_whole_request_has_a_deadline(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SECONDS", 0.5)
    opened = await half_sent(served.port, BODY, 5)
    await asyncio.sleep(0.8)
    assert await still_open(opened) == 0
    await close(opened)


@pytest.mark.parametrize("text", ["", HEADERS, BODY], ids=["nothing", "headers", "bodies"])
async def test_600_incomplete_requests_do_not_block_other_senders(
    session: aiohttp.ClientSession, served: Served, text: str
) -> None:
    opened = []
    for number in range(10):
        opened += await half_sent(served.port, text, 60, f"127.0.0.{number + 2}")
        assert len(served.connections) <= connections.MOST
        for path in (PATH, GENERIC):
            status, _, _ = await post(session, served.url(path), b"{}", **AUTHORIZED)
            assert status == 202
    assert await still_open(opened) <= connections.MOST
    await close(opened)
    await until(lambda: served.endpoint._memory.taken == 0)


async def test_connections_of_a_peer_are_limited(
    session: aiohttp.ClientSession, served: Served
) -> None:
    opened = await half_sent(served.port, HEADERS, 3 * connections.MOST_PER_PEER, "127.0.0.2")
    await asyncio.sleep(0.05)
    assert await still_open(opened) == connections.MOST_PER_PEER
    assert await still_open(opened[: 2 * connections.MOST_PER_PEER]) == 0, (
        "the oldest connections are closed first"
    )
    await close(opened)


async def test_incomplete_bodies_use_the_memory_of_their_receiver_only(
    session: aiohttp.ClientSession, served: Served
) -> None:
    size = MOST - 1
    head = f"POST /hooks/{PATH} HTTP/1.1\r\nHost: h\r\nContent-Length: {MOST}\r\n\r\n"
    opened = await half_sent(served.port, head + "x" * size, 48)
    while served.endpoint._memory.taken < module.MOST_BYTES_OF_RECEIVER - MOST:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    assert served.endpoint._memory.taken <= module.MOST_BYTES_OF_RECEIVER
    body = payload("generic")
    assert (await post(session, served.url(GENERIC), body, **AUTHORIZED))[0] == 202
    await close(opened)
    await until(lambda: served.endpoint._memory.taken == 0)


async def test_complete_request_is_not_closed_for_a_new_connection(
    session: aiohttp.ClientSession, served: Served
) -> None:
    waiting = asyncio.create_task(post(session, served.url(SLOW)))
    while not served.endpoint._places.taken:
        await asyncio.sleep(0.001)
    opened = await half_sent(served.port, HEADERS, 2 * connections.MOST_PER_PEER)
    Slow.let_go.set()
    assert (await waiting)[0] == 202
    await close(opened)


async def test_incomplete_requests_do_not_delay_the_shutdown(served: Served) -> None:
    """The pod has 10 s to stop, and it needs a part of them to hand over waiting pushes."""
    port = ports.one()
    site = await connections.serve(served.endpoint.app(), port)
    opened = await half_sent(port, HEADERS, 5) + await half_sent(port, BODY, 5)
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await site.cleanup()
    assert time.monotonic() - began < 5
    await close(opened)


async def test_connection_serves_only_one_request(served: Served) -> None:
    text = f"POST /hooks/{SLOW} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{{}}"
    Slow.let_go.set()
    ((reader, writer),) = await half_sent(served.port, text * 3, 1)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.count(b"HTTP/1.1") == 1
    assert b"Connection: close" in answer
    writer.close()
