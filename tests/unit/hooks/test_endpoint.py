"""The port itself, over HTTP: what is answered to whom, and how a standby hands on."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import io
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web

from imagegate import http
from imagegate.hooks import endpoint as module
from imagegate.hooks.directory import Directory
from imagegate.hooks.endpoint import FORWARDED, MAX_BODY, Endpoint
from imagegate.hooks.event import Delivery, Parsed, Push, Receiver, Source
from imagegate.hooks.receiver import PushReceiver
from imagegate.hooks.sources import SOURCES
from tests.unit.hooks.test_sources import payload

PATH, GENERIC, SLOW, BROKEN = "d" * 16, "g" * 16, "s" * 16, "b" * 16
SECRET = "the-secret-of-them-all"


let_go = asyncio.Event()


async def slowly(_: Delivery, __: Receiver, ___: object) -> None:
    await let_go.wait()


async def brokenly(_: Delivery, __: Receiver, ___: object) -> None:
    raise RecursionError("a defect")


def nothing(_: Delivery, __: Receiver) -> Parsed:
    return Parsed()


MORE = {
    **SOURCES,
    "slow": Source("slow", nothing, slowly),
    "broken": Source("broken", nothing, brokenly),
}


class Replica:
    """One process of the operator, as far as hooks are concerned."""

    def __init__(self, file: Path, session: aiohttp.ClientSession) -> None:
        self.asked: list[Push] = []
        self.outcomes: Counter[str] = Counter()
        self.leading = True
        self.leader = ""
        self.port = free_port()

        def observe(_: str, outcome: str) -> None:
            self.outcomes.update([str(outcome)])

        async def fetch(url: str, *, fresh: bool = False) -> bytes:
            raise AssertionError

        def pushed(push: Push) -> int:
            self.asked.append(push)
            return 1

        directory = Directory(file, MORE)
        directory.reload()
        self.endpoint = Endpoint(
            directory,
            PushReceiver(directory, MORE, pushed=pushed, fetch=fetch, observe=observe),
            leading=lambda: self.leading,
            leader=lambda: self.leader,
            session=session,
            observe=observe,
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str = PATH) -> str:
        return f"http://{self.address}/hooks/{path}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as opened:
        yield opened


@pytest.fixture
async def replicas(
    tmp_path: Path, session: aiohttp.ClientSession
) -> AsyncIterator[tuple[Replica, Replica]]:
    """A leader, and a standby that knows it."""
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
    pair = Replica(file, session), Replica(file, session)
    sites = [await http.serve(each.endpoint.app(), each.port) for each in pair]
    pair[1].leading, pair[1].leader = False, pair[0].address
    yield pair
    for site in sites:
        await site.cleanup()


@pytest.fixture
def leader(replicas: tuple[Replica, Replica]) -> Replica:
    return replicas[0]


@pytest.fixture
def standby(replicas: tuple[Replica, Replica]) -> Replica:
    return replicas[1]


AUTHORIZED = {"Authorization": f"Bearer {SECRET}"}
Seen = tuple[int, bytes, dict[str, str]]


async def post(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes = b"{}",
    method: str = "POST",
    **headers: str,
) -> Seen:
    # aiohttp warns of large bodies that are plain bytes.
    async with session.request(method, url, data=io.BytesIO(body), headers=headers) as response:
        shown = {k: v for k, v in response.headers.items() if k not in ("Date", "Connection")}
        return response.status, await response.read(), shown


async def test_a_push(session: aiohttp.ClientSession, leader: Replica) -> None:
    status, body, _ = await post(session, leader.url(), payload("distribution"), **AUTHORIZED)
    assert (status, body) == (202, b"")
    assert leader.asked == [Push("team/app", "1", "r.example")]


async def test_all_misses_look_the_same(session: aiohttp.ClientSession, leader: Replica) -> None:
    body = payload("distribution")
    root = f"http://{leader.address}"
    forged = {"X-Signature": "sha256=" + "0" * 64}
    answers = [
        await post(session, leader.url("x" * 16), body, **AUTHORIZED),
        await post(session, f"{root}/", body, **AUTHORIZED),
        await post(session, f"{root}/metrics", method="GET"),
        await post(session, f"{root}/healthz", method="GET"),
        await post(session, f"{root}/{PATH}", body, **AUTHORIZED),
        await post(session, f"{root}/hooks/hooks/{PATH}", body, **AUTHORIZED),
        await post(session, leader.url() + "/", body, **AUTHORIZED),
        await post(session, leader.url(PATH.upper()), body, **AUTHORIZED),
        await post(session, leader.url(), body),
        await post(session, leader.url(), body, Authorization="Bearer other"),
        await post(session, leader.url(), b"", "GET", **AUTHORIZED),
        await post(session, leader.url(), body, method="PUT", **AUTHORIZED),
        await post(session, leader.url(), body, method="OPTIONS", **AUTHORIZED),
        await post(session, leader.url(GENERIC), payload("generic"), **forged),
        await post(session, leader.url(BROKEN), body),
        await post(session, leader.url("x" * 16), b"x" * (MAX_BODY + 1)),
    ]
    assert [status for status, _, _ in answers] == [404] * len(answers)
    assert {(body, tuple(sorted(headers.items()))) for _, body, headers in answers} == {
        (answers[0][1], tuple(sorted(answers[0][2].items())))
    }
    assert leader.asked == []


async def test_too_large(session: aiohttp.ClientSession, leader: Replica) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b"x" * (MAX_BODY // 16)

    assert (await post(session, leader.url(), b" " * MAX_BODY, **AUTHORIZED))[0] == 202
    assert (await post(session, leader.url(), b" " * (MAX_BODY + 1), **AUTHORIZED))[0] == 413
    async with session.post(leader.url(), data=chunks(), headers=AUTHORIZED) as response:
        assert response.status == 413


async def test_a_body_that_does_not_come(
    session: aiohttp.ClientSession, leader: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", leader.port)
    head = f"POST /hooks/{PATH} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{{"
    writer.write(head.encode())
    line = await asyncio.wait_for(reader.readline(), 5)
    assert b"404" in line
    writer.close()
    await writer.wait_closed()
    assert leader.endpoint._busy == 0


async def test_compressed_bodies_are_not_unpacked(
    session: aiohttp.ClientSession, leader: Replica
) -> None:
    """What is signed is what was sent; and a small one must not become a large one."""
    body = payload("generic")
    value = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-Signature": value, "Content-Encoding": "gzip"}
    assert (await post(session, leader.url(GENERIC), body, **headers))[0] == 202
    assert leader.asked == [Push("team/app", "1.2", "registry.example")]


async def test_hostile_requests(session: aiohttp.ClientSession, leader: Replica) -> None:
    for text in (
        f"POST /hooks/{PATH}%00 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{{}}",
        f"POST /hooks/{PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: \xff\xfe\r\n\r\n",
        "POST /hooks/%ff%fe HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
        f"POST /hooks/{PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Basic \u00e4\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", leader.port)
        writer.write(text.encode("latin-1"))
        line = await asyncio.wait_for(reader.readline(), 5)
        assert line.split()[1] in (b"404", b"400"), (text, line)
        writer.close()
        await writer.wait_closed()


async def test_too_many_at_once(
    session: aiohttp.ClientSession, leader: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 3)
    let_go.clear()
    slow = [asyncio.create_task(post(session, leader.url(SLOW))) for _ in range(3)]
    while leader.endpoint._busy < 3:
        await asyncio.sleep(0.001)
    assert [(await post(session, leader.url(SLOW)))[0] for _ in range(3)] == [503] * 3
    assert (await post(session, leader.url("x" * 16)))[0] == 404
    let_go.set()
    assert [(await each)[0] for each in slow] == [202] * 3
    assert (await post(session, leader.url(SLOW)))[0] == 202


# ---- two replicas


async def test_a_standby_hands_on_what_it_gets(
    session: aiohttp.ClientSession, leader: Replica, standby: Replica
) -> None:
    body = payload("generic")
    value = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    answer = await post(session, standby.url(GENERIC), body, **{"X-Signature": value})
    assert answer[0] == 202
    assert leader.asked == [Push("team/app", "1.2", "registry.example")]
    assert standby.asked == []
    assert (leader.outcomes, standby.outcomes) == ({"asked": 1}, {"forwarded": 1})


async def test_and_the_answer_is_the_leaders(
    session: aiohttp.ClientSession, leader: Replica, standby: Replica
) -> None:
    body = payload("generic")
    direct = await post(session, leader.url(GENERIC), body, **{"X-Signature": "sha256=00"})
    handed = await post(session, standby.url(GENERIC), body, **{"X-Signature": "sha256=00"})
    assert direct == handed
    assert direct[0] == 404
    assert standby.outcomes == {"forwarded": 1}


async def test_a_standby_keeps_to_itself_what_it_can_refuse(
    session: aiohttp.ClientSession, leader: Replica, standby: Replica
) -> None:
    assert (await post(session, standby.url("x" * 16)))[0] == 404
    assert (await post(session, standby.url(), b" " * (MAX_BODY + 1)))[0] == 413
    assert leader.outcomes == {}


async def test_no_leader_is_known(session: aiohttp.ClientSession, standby: Replica) -> None:
    standby.leader = ""
    status, _, headers = await post(session, standby.url(), b"{}", **AUTHORIZED)
    assert (status, headers["Retry-After"]) == (503, "5")
    assert standby.outcomes == {"unavailable": 1}


async def test_the_leader_is_gone(session: aiohttp.ClientSession, standby: Replica) -> None:
    standby.leader = f"127.0.0.1:{free_port()}"
    assert (await post(session, standby.url(), b"{}", **AUTHORIZED))[0] == 503


async def test_the_leader_is_silent(
    session: aiohttp.ClientSession, standby: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORWARD_SECONDS", 0.3)
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    standby.leader = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    assert (await post(session, standby.url(), b"{}", **AUTHORIZED))[0] == 503
    silent.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


async def test_two_who_take_each_other_for_the_leader_do_not_go_round(
    session: aiohttp.ClientSession, leader: Replica, standby: Replica
) -> None:
    leader.leading, leader.leader = False, standby.address
    assert (await post(session, standby.url(), b"{}", **AUTHORIZED))[0] == 503
    assert leader.outcomes == {"unavailable": 1}
    assert standby.outcomes == {"forwarded": 1}
    assert (await post(session, leader.url(), b"{}", **AUTHORIZED, **{FORWARDED: "1"}))[0] == 503


async def test_what_is_handed_on(session: aiohttp.ClientSession, standby: Replica) -> None:
    """Every header that a proof may need, and none that is about this connection."""
    heard: list[tuple[str, dict[str, str], bytes]] = []

    async def hear(request: web.Request) -> web.Response:
        heard.append((request.path, dict(request.headers), await request.read()))
        return web.Response(status=299, text="said", headers={"WebHook-Allowed-Origin": "*"})

    app, port = web.Application(), free_port()
    app.router.add_route("*", "/{path:.*}", hear)
    site = await http.serve(app, port)
    with contextlib.suppress(OSError):
        standby.leader = f"127.0.0.1:{port}"
        reader, writer = await asyncio.open_connection("127.0.0.1", standby.port)
        lines = [
            f"POST /hooks/{PATH} HTTP/1.1",
            *("Host: public.example", "X-Hub-Signature-256: sha256=ab", "Authorization: Bearer t"),
            *("Content-Type: application/json", "Connection: close", "Expect: 100-continue"),
            *("Transfer-Encoding: chunked", "X-Odd: \xff", "X-Utf: \xc3\xa4", "", ""),
        ]
        writer.write("\r\n".join(lines).encode("latin-1") + b"3\r\n{ }\r\n0\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    await site.cleanup()
    ((path, headers, body),) = heard
    assert (path, body) == (f"/hooks/{PATH}", b"{ }")
    assert headers["X-Hub-Signature-256"] == "sha256=ab"
    assert headers["Authorization"] == "Bearer t"
    assert headers["X-Utf"] == "ä"
    assert headers[FORWARDED] == "1"
    assert headers["Host"] == f"127.0.0.1:{port}"
    assert {"X-Odd", "Expect", "Connection"}.isdisjoint(headers)
    assert b"HTTP/1.1 299" in answer
    assert b"WebHook-Allowed-Origin: *" in answer
    assert answer.endswith(b"said")
