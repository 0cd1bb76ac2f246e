"""One HTTP exchange with a registry, with its token service, or with the target of a redirect.

All their common rules are here: limits for time, size and rate, redirects, TLS, and errors without
secrets. `client` and `tokens` interpret the answers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from imagegate.registry import endpoints, errors, failures
from imagegate.registry.addresses import Guard
from imagegate.registry.endpoints import RegistrySettings
from imagegate.registry.large import LONGEST_READ, SMALL, Room
from imagegate.registry.limits import Lane, Timing

MAX_REDIRECTS = 5
MAX_FAILURE = 64 * 1024
"""Bytes that are read of the body of an error; the rest is dropped."""
MOST_REGISTRIES = 256
"""Largest number of idle registries whose connections are kept."""
MOST_PAUSED = 1024
"""Largest number of idle registries that are remembered because they asked for a pause."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class RegistryObserver(Protocol):
    """Receives figures about requests (metrics)."""

    def observe_registry_request(self, registry: str, code: str) -> None:
        """Record one request for `registry`, as in references, with the status `code`.

        The code is `<error>` without a complete answer. Requests for tokens and redirects count.
        """


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    url: URL
    headers: Mapping[str, str]
    limit: int
    """Largest body of a successful answer, in bytes."""
    authorization: str | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """If an answer repeats one of these values, it is not quoted."""
    redirects: bool = True
    """Whether redirects are followed. A token service has no reason to redirect."""
    counted: bool = False
    """Whether the request counts towards the registry's limit of pulls."""
    room: Room | None = field(default=None, repr=False)
    """Provides the slot for a large body; required for a limit above `large.SMALL`."""

    def with_login(self, authorization: str | None, secrets: tuple[str, ...]) -> Request:
        return replace(self, authorization=authorization, secrets=secrets)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names match in any case."""
    body: bytes
    url: URL
    """The URL that answered, after redirects. Its query may be a signature, so messages may contain
    only the host."""
    challenges: tuple[str, ...] = ()
    """Every `WWW-Authenticate` header."""


class Transport:
    """Must be created inside a running event loop, and closed."""

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        observer: RegistryObserver | None = None,
        resolver: AbstractResolver | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._timing = timing or Timing()
        self._ways: OrderedDict[str, _Way] = OrderedDict()
        self._tls = endpoints.tls_context(settings.ca_bundle)
        self._owned = resolver is None
        self._resolver = resolver or aiohttp.DefaultResolver()

    async def close(self) -> None:
        for way in self._ways.values():
            await way.session.close()
        self._ways.clear()
        if self._owned:
            await self._resolver.close()

    async def exchange(self, registry: str, request: Request) -> Answer:
        """Send a request and follow redirects. `registry` is the registry as in references.

        Returns every answer with a status below 500 except 429, and 501. Other answers, and
        failures of the connection, are raised: `Throttled`, `Unavailable`, `TLSFailed`,
        `InvalidAnswer`.
        """
        authorization, url = request.authorization, request.url
        for _ in range(1 + MAX_REDIRECTS):
            answer = await self._once(registry, request, url, authorization)
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or location is None:
                return answer
            if not request.redirects:
                raise errors.InvalidAnswer(
                    registry,
                    "its token service redirects a request that holds a token"
                    if request.form is not None
                    else "its token service redirects",
                    "the redirect is not followed: ask the registry's operator for the right realm",
                )
            target = _redirect(registry, url, location)
            if target.origin() != url.origin():
                # A credential is for one origin only. After a redirect to another origin it is not
                # sent again, even if a later redirect leads back.
                authorization = None
            url = target
        raise errors.InvalidAnswer(
            registry, f"more than {MAX_REDIRECTS} redirects", "check the registry, or its proxy"
        )

    async def _once(
        self, registry: str, request: Request, url: URL, authorization: str | None
    ) -> Answer:
        headers = dict(request.headers)
        if authorization is not None:
            headers["Authorization"] = authorization
        async with self._way(registry) as way, way.lane.turn(counted=request.counted):
            code, failure = "<error>", None
            try:
                await way.guard.check(url.host or "")
                async with way.session.request(
                    request.method,
                    url,
                    headers=headers,
                    data=request.form,
                    allow_redirects=False,
                    proxy=endpoints.proxy(url),
                ) as response:
                    body = await _body(registry, response, request)
                    code = str(response.status)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                failure = failures.of(registry, url, error, self._settings)
            finally:
                if self._observer is not None:
                    self._observer.observe_registry_request(registry, code)
        if failure is not None:
            # Raised outside of the handler, so that aiohttp's exception is not the context: its
            # text contains whole URLs, which may be signed.
            raise failure
        status = response.status
        pause = way.lane.heed(status, response.headers)
        # 501 is permanent: the method is not implemented (RFC 9110, 15.6.2).
        if pause is not None or (status >= 500 and status != 501):
            said = self.quoted(registry, url, status, body, request.secrets)
            problem = f"{failures.who(registry, url)} answered {said}"
            if pause is not None:
                raise errors.Throttled(registry, problem, pause, status=status)
            raise errors.Unavailable(registry, problem, "it is asked again later", status=status)
        offered = tuple(response.headers.getall("WWW-Authenticate", ()))
        return Answer(status, response.headers, body, url, offered)

    def quoted(
        self, registry: str, url: URL, status: int, body: bytes, secrets: tuple[str, ...]
    ) -> str:
        """Status and message of an answer from `url`. Only the status if `url` is on another host
        than the registry, because a registry must not make texts of other services visible.
        """
        own = endpoints.base(registry, self._settings).origin()
        return errors.quoted(status, body if url.origin() == own else b"", secrets)

    @asynccontextmanager
    async def _way(self, registry: str) -> AsyncIterator[_Way]:
        way = self._ways.get(registry)
        if way is None:
            way = self._ways[registry] = self._new_way(registry)
        self._ways.move_to_end(registry)
        # Before the first await, because a way without users may be closed meanwhile.
        way.users += 1
        try:
            await self._forget_some()
            yield way
        finally:
            way.users -= 1

    async def _forget_some(self) -> None:
        """Close ways that are not used, those without a pause first."""
        while len(self._ways) > MOST_REGISTRIES:
            name = next((name for name, each in self._ways.items() if each.idle), None)
            if name is None and len(self._ways) > MOST_PAUSED:
                name = next((name for name, each in self._ways.items() if not each.users), None)
            if name is None:
                return
            await self._ways.pop(name).session.close()

    def _new_way(self, registry: str) -> _Way:
        """Every registry has its own connections. The address of a connection is allowed for its
        own registry, but perhaps not as the target to which another registry sends the operator.
        """
        settings = self._settings
        own = endpoints.base(registry, settings).host or ""
        guard = Guard(self._resolver, own, settings.private_hosts)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0, resolver=guard),
            # No cookies, because a session of one credential must not be used with another.
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=settings.total_timeout, connect=settings.connect_timeout
            ),
            headers={"User-Agent": settings.user_agent, "Accept-Encoding": "identity"},
        )
        lane = Lane(
            registry,
            slots=settings.concurrency,
            longest_wait=settings.longest_wait,
            timing=self._timing,
        )
        return _Way(lane, guard, session)


@dataclass(slots=True)
class _Way:
    """Limits and connections for one registry and for the hosts to which it sends the operator."""

    lane: Lane
    guard: Guard
    session: aiohttp.ClientSession
    users: int = 0

    @property
    def idle(self) -> bool:
        """Whether it can be dropped: no request uses it, and no pause of the registry would be
        lost.
        """
        return self.users == 0 and self.lane.pause(counted=True) <= 0


def _redirect(registry: str, url: URL, location: str) -> URL:
    """The target of a redirect. Raises `InvalidAnswer`, also for a redirect from TLS to HTTP."""
    try:
        target = url.join(URL(location)).with_fragment(None)
        sound = target.scheme in ("http", "https") and bool(target.host) and target.user is None
    except ValueError:
        sound = False
    if not sound or target.password is not None:
        problem = "redirects to an invalid address"
    elif url.scheme == "https" and target.scheme == "http":
        problem = f"redirects from TLS to plain HTTP at {target.host}"
    else:
        return target
    raise errors.InvalidAnswer(
        registry, f"{failures.who(registry, url)} {problem}", "check the registry, or its proxy"
    )


async def _body(registry: str, response: aiohttp.ClientResponse, request: Request) -> bytes:
    """The whole body; of an error only the beginning. Raises `InvalidAnswer` beyond the limit."""
    succeeded, limit = response.status < 300, request.limit
    assert request.room is not None or limit <= SMALL
    body = bytearray()
    host = failures.who(registry, response.url)
    try:
        async with asyncio.timeout(None) as deadline:
            async for chunk in response.content.iter_any():
                body += chunk
                if request.room is not None and await request.room.want(len(body)):
                    deadline.reschedule(asyncio.get_running_loop().time() + LONGEST_READ)
                if not succeeded and len(body) >= MAX_FAILURE:
                    break
                if succeeded and len(body) > limit:
                    raise errors.InvalidAnswer(
                        registry,
                        f"{host} sent more than {limit} bytes",
                        "no image needs that much: check the reference, and the registry or its"
                        " proxy",
                        status=response.status,
                    )
    except TimeoutError:
        if not deadline.expired():
            raise
        raise errors.Unavailable(
            registry,
            f"{host} did not send a large document within {LONGEST_READ:g} s",
            "it is asked again later",
        ) from None
    return bytes(body)
