"""One HTTP exchange with a registry, its token service, or where it redirects to.

Everything that holds for all of them is here and nowhere else: time, size, pace, redirects, TLS,
and errors without secrets. What an answer means is for `client` and `tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from imagegate.registry import endpoints, errors, failures
from imagegate.registry.endpoints import RegistrySettings
from imagegate.registry.limits import Lane, Timing

MAX_REDIRECTS = 5
MAX_FAILURE = 64 * 1024
"""Bytes that are read of an answer which is no success; the rest is cut."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class RegistryObserver(Protocol):
    """Where figures about requests go (metrics)."""

    def observe_registry_request(self, registry: str, code: str) -> None:
        """One request was sent: to `registry` as references name it, and answered with `code`.

        The code is `<error>` where no whole answer came. Requests for tokens and redirects count.
        """


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    url: URL
    headers: Mapping[str, str]
    limit: int
    """Bytes of a successful answer's body at most."""
    authorization: str | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What an answer must not be quoted with, should it repeat them."""
    counted: bool = False
    """Whether the registry counts it against an allowance of pulls."""

    def with_login(self, authorization: str | None, secrets: tuple[str, ...]) -> Request:
        return replace(self, authorization=authorization, secrets=secrets)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """By names in any case."""
    body: bytes
    url: URL
    """Who answered: after redirects. Its query may be a signature: for messages, the host only."""
    challenges: tuple[str, ...] = ()
    """Every `WWW-Authenticate` header."""


class Transport:
    """Must be made inside a running event loop, and closed."""

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
        self._lanes: dict[str, Lane] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=endpoints.tls_context(settings.ca_bundle), limit=0, resolver=resolver
            ),
            # Cookies would carry one credential's session into another's request.
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=settings.total_timeout, connect=settings.connect_timeout
            ),
            headers={"User-Agent": settings.user_agent, "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        await self._session.close()

    async def exchange(self, registry: str, request: Request) -> Answer:
        """Send, and follow redirects; `registry` is who it is for, as references name it.

        The answer is any below 500 but for 429; those, and no answer, are errors. Raises
        `Throttled`, `Unavailable`, `TLSFailed`, `InvalidAnswer`.
        """
        authorization, url = request.authorization, request.url
        for _ in range(1 + MAX_REDIRECTS):
            answer = await self._once(registry, request, url, authorization)
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or location is None:
                return answer
            if request.form is not None:
                raise errors.InvalidAnswer(
                    registry,
                    "its token service redirects a request that holds a token",
                    "it is not sent on: ask the registry's operator for the right realm",
                )
            target = _redirect(registry, url, location)
            if target.origin() != url.origin():
                # A credential is for one origin. Once dropped it stays so, on the way back, too.
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
        lane = self._lane(registry)
        async with lane.turn(counted=request.counted):
            code, failure = "<error>", None
            try:
                async with self._session.request(
                    request.method,
                    url,
                    headers=headers,
                    data=request.form,
                    allow_redirects=False,
                    proxy=endpoints.proxy(url),
                ) as response:
                    body = await _body(registry, response, request.limit)
                    code = str(response.status)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                failure = failures.of(registry, url, error, self._settings)
            finally:
                if self._observer is not None:
                    self._observer.observe_registry_request(registry, code)
        if failure is not None:
            # Outside of the handler: aiohttp's texts hold whole URLs, signed ones as well.
            raise failure
        status = response.status
        pause = lane.heed(status, response.headers)
        # 501 is for good: that method is not implemented (RFC 9110, 15.6.2).
        if pause is not None or (status >= 500 and status != 501):
            said = errors.quoted(status, body, request.secrets)
            problem = f"{failures.who(registry, url)} answered {said}"
            if pause is not None:
                raise errors.Throttled(registry, problem, pause, status=status)
            raise errors.Unavailable(registry, problem, "it is asked again later", status=status)
        offered = tuple(response.headers.getall("WWW-Authenticate", ()))
        return Answer(status, response.headers, body, url, offered)

    def _lane(self, registry: str) -> Lane:
        lane = self._lanes.get(registry)
        if lane is None:
            lane = self._lanes[registry] = Lane(
                registry,
                slots=self._settings.concurrency,
                longest_wait=self._settings.longest_wait,
                timing=self._timing,
            )
        return lane


def _redirect(registry: str, url: URL, location: str) -> URL:
    """Where a redirect leads. Raises `InvalidAnswer`: TLS is never given up on the way."""
    try:
        target = url.join(URL(location)).with_fragment(None)
        sound = target.scheme in ("http", "https") and bool(target.host) and target.user is None
    except ValueError:
        sound = False
    if not sound or target.password is not None:
        problem = "redirects to what is no address"
    elif url.scheme == "https" and target.scheme == "http":
        problem = f"redirects from TLS to plain HTTP at {target.host}"
    else:
        return target
    raise errors.InvalidAnswer(
        registry, f"{failures.who(registry, url)} {problem}", "check the registry, or its proxy"
    )


async def _body(registry: str, response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, whole; of a failure only the beginning. Raises `InvalidAnswer` beyond the limit."""
    succeeded = response.status < 300
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if not succeeded and len(body) >= MAX_FAILURE:
            break
        if succeeded and len(body) > limit:
            raise errors.InvalidAnswer(
                registry,
                f"{failures.who(registry, response.url)} sent more than {limit} bytes",
                "no image needs that much: check the reference, and the registry or its proxy",
                status=response.status,
            )
    return bytes(body)
