"""Requests to the API server: one async client over ``kubernetes.aio``.

Bodies are plain JSON. The generated models of the package cost half a millisecond and 86 KB for
one Node, so only its configuration, authentication and transport are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import msgspec
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from yarl import URL

from imagegate.kube import errors
from imagegate.kube.turns import Turns

logger = logging.getLogger(__name__)

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"

KUBECONFIG = "~/.kube/config"
CONNECTIONS = 64
"""Largest number of requests in flight. API priority and fairness limits them further."""
RESERVED = 4
"""Additional connections for the election, so that a renewal never waits for 64 other requests."""
CONNECTION_WAIT = 10.0
"""Seconds that a request waits for a free connection."""
TIMEOUT = aiohttp.ClientTimeout(total=30.0, sock_connect=3.0)
"""The timeout for a connection must be shorter than the time between the fence's deadline and the
end of the lease (`runtime.election`), so that a write that passed the fence is sent before another
process can become leader."""
WATCH_SECONDS = 300
"""Seconds after which the API server ends a watch; the next watch continues at its end."""
WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=150.0)
"""Every working watch gets a bookmark about once a minute, even if no object changes."""
PAGE = 500
THROTTLE_RETRIES = 4
LONGEST_THROTTLE = 10.0
"""Longest wait for a Retry-After, in seconds. If it is longer, the caller's back-off applies."""
OUTAGE = 5.0
"""Seconds without any answer after which the next answer ends an outage. The Lease is renewed every
2 s. If that works, a 503 concerns only one resource (such as an unavailable webhook)."""
NOT_ANSWERED = frozenset({0, 502, 503, 504})
"""The API server was not reached or not ready. A 500 does not count: a webhook may cause it."""

Body = Mapping[str, Any]


class RequestObserver(Protocol):
    """Receives figures about requests (metrics)."""

    def observe_request(self, method: str, code: str, seconds: float) -> None: ...


class TimeObserver(Protocol):
    """Receives the API server's time (`runtime.clock.ServerTime`)."""

    def heard(self, date: str | None, sent: float) -> None: ...


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Body | Sequence[Body] | None = None
    content_type: str = JSON
    urgent: bool = False

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


class _Page(msgspec.Struct):
    """A page of a list whose items are not parsed yet."""

    metadata: dict[str, Any] | None = None
    items: list[msgspec.Raw] | None = None


_PAGES = msgspec.json.Decoder(_Page)
_OBJECTS: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list.

    ``items`` parses each object when it is reached, because a parsed Node needs four times the
    memory of its JSON text, and most objects become small facts at once.
    """

    version: str
    """resourceVersion of the list."""
    token: str
    """Where the next page begins; empty: this is the last page."""
    items: Iterator[dict[str, Any]]


class Client:
    """Reads and fenced writes.

    ``fence`` is called directly before every write, also before a repeated write. It raises
    :class:`~imagegate.kube.errors.NotLeader` if this process may no longer write. Requests of the
    election are not fenced, and do not wait for other requests.
    """

    def __init__(
        self,
        api: ApiClient,
        *,
        fence: Callable[[], None] = lambda: None,
        observer: RequestObserver | None = None,
        connections: int = 0,
        time_observer: TimeObserver | None = None,
        recovered: Callable[[], None] = lambda: None,
    ) -> None:
        """``recovered`` is called when the API server answers again after an outage."""
        self._api = api
        self._time_observer = time_observer
        self._fence = fence
        self._observer = observer
        self._turns = Turns(connections) if connections else None
        self._answered_at = float("-inf")
        self._unanswered = False
        self._recovered = recovered

    @classmethod
    async def connect(
        cls,
        *,
        user_agent: str,
        fence: Callable[[], None] = lambda: None,
        observer: RequestObserver | None = None,
        time_observer: TimeObserver | None = None,
        connections: int = CONNECTIONS,
        recovered: Callable[[], None] = lambda: None,
        kubeconfig: str = "",
        context: str = "",
    ) -> Client:
        """Connect with the pod's service account, or else with a kubeconfig. ``connections``: the
        largest number of concurrent connections; 0: no limit. If ``kubeconfig`` or ``context`` is
        given, the service account is not used.

        Raises :class:`~imagegate.kube.errors.NotConfigured` if there is neither.
        """
        configuration = await _configuration(kubeconfig, context)
        # Requests wait for a connection in `_turn`, not in the pool, because the fence must be
        # checked after the wait.
        configuration.connection_pool_maxsize = connections + RESERVED if connections else 0
        api = api_client(configuration)
        api.user_agent = user_agent
        return cls(
            api,
            fence=fence,
            observer=observer,
            connections=connections,
            time_observer=time_observer,
            recovered=recovered,
        )

    async def close(self) -> None:
        await self._api.close()

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        return await self._request(_Sent("GET", path, query))

    async def page(self, path: str, *, token: str = "", limit: int = PAGE, **query: str) -> Page:
        """One page of a list, with ``limit`` objects at most. ``token``: of the page before.

        Raises :class:`~imagegate.kube.errors.Gone` if the list was compacted since the page before.
        """
        more = {"continue": token} if token else {}
        sent = _Sent("GET", path, {**query, "limit": str(limit), **more})
        page: _Page = _parsed(await self._answer(sent), sent.name, _PAGES)
        metadata = page.metadata or {}
        return Page(
            version=str(metadata.get("resourceVersion") or ""),
            token=metadata.get("continue") or "",
            items=(_parsed(item, sent.name) for item in page.items or ()),
        )

    async def create(self, path: str, body: Body, **query: str) -> dict[str, Any]:
        return await self._request(_Sent("POST", path, query, body))

    async def patch(
        self, path: str, body: Body | Sequence[Body], content_type: str, *, urgent: bool = False
    ) -> dict[str, Any]:
        """``urgent``: the next free connection is for this request."""
        sent = _Sent("PATCH", path, body=body, content_type=content_type, urgent=urgent)
        return await self._request(sent)

    async def replace(self, path: str, body: Body, *, fenced: bool = True) -> dict[str, Any]:
        return await self._request(_Sent("PUT", path, body=body), fenced=fenced)

    async def create_unfenced(self, path: str, body: Body) -> dict[str, Any]:
        """For the election's own Lease, which a process writes before it is leader."""
        return await self._request(_Sent("POST", path, body=body), fenced=False)

    async def delete(self, path: str, body: Body | None = None) -> dict[str, Any]:
        return await self._request(_Sent("DELETE", path, body=body or {}))

    async def list_all(self, path: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        """Every object, read in pages, so that 5,000 Nodes are never in memory at once.

        Raises :class:`~imagegate.kube.errors.Gone` if the list is compacted between two pages.
        """
        token = ""
        while True:
            page = await self.page(path, token=token, limit=PAGE, **query)
            for item in page.items:
                yield item
            token = page.token
            if not token:
                return

    async def watch(
        self, path: str, version: str, **query: str
    ) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        """The events after ``version``: (type of the event, object), BOOKMARKs included.

        The API server ends the watch after some minutes. The caller then watches from the last
        object's resourceVersion. Raises :class:`~imagegate.kube.errors.Gone` if the version is too
        old, and the errors of other requests.
        """
        request = f"WATCH {path}"
        started, code = _monotonic(), "<error>"
        asked = {"watch": "true", "allowWatchBookmarks": "true", **query}
        asked |= {"resourceVersion": version, "timeoutSeconds": str(WATCH_SECONDS)}
        try:
            serialized = await self._serialize(_Sent("GET", path, asked))
            response = await self._api.call_api(*serialized, _request_timeout=WATCH_TIMEOUT)
            code = str(response.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.Unavailable(request, 0, f"{type(error).__name__}: {error}") from error
        finally:
            if self._observer is not None:
                self._observer.observe_request("WATCH", code, _monotonic() - started)
        try:
            if response.status >= 400:
                payload, delay = await response.read(), response.getheader("Retry-After")
                raise errors.from_response(request, "GET", response.status, payload, delay)
            async for line in response.response.content:
                event = _parsed(line, request)
                body: dict[str, Any] = event["object"]
                if event["type"] == "ERROR":
                    status = int(body.get("code") or 500)
                    text = json.dumps(body).encode()
                    raise errors.from_response(request, "GET", status, text, None)
                yield event["type"], body
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            # ValueError: the connection ended within a line.
            raise errors.Unavailable(request, 0, f"{type(error).__name__}: {error}") from error
        finally:
            response.response.close()

    async def _serialize(self, sent: _Sent) -> tuple[Any, Any, Any, Any, Any]:
        serialized: tuple[Any, Any, Any, Any, Any] = await self._api.param_serialize(
            sent.method,
            sent.path,
            query_params=list(sent.query.items()),
            header_params={"Accept": JSON, "Content-Type": sent.content_type},
            body=sent.body,
            auth_settings=["BearerToken"],
        )
        return serialized

    async def _request(self, sent: _Sent, *, fenced: bool = True) -> dict[str, Any]:
        """``fenced=False``: a request of the election, which is not fenced and never waits."""
        answer: dict[str, Any] = _parsed(await self._answer(sent, fenced=fenced), sent.name)
        return answer

    async def _answer(self, sent: _Sent, *, fenced: bool = True) -> bytes:
        """The body of the answer. A throttled request is repeated."""
        for retry in range(THROTTLE_RETRIES):
            try:
                async with self._turn(sent) if fenced else contextlib.nullcontext():
                    if fenced and sent.method != "GET":
                        self._fence()
                    answer = await self._send(sent)
            except errors.Unavailable as error:
                # API priority and fairness refuses a request before it is processed, so the request
                # can be repeated safely.
                if error.status != 429 or retry == THROTTLE_RETRIES - 1:
                    self._note(answered=error.status not in NOT_ANSWERED)
                    raise
                delay = min(LONGEST_THROTTLE, max(error.retry_after, 0.2 * 2**retry))
                await asyncio.sleep(delay)
            except errors.KubeError:
                self._note(answered=True)
                raise
            else:
                self._note(answered=True)
                return answer
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def _turn(self, sent: _Sent) -> AsyncIterator[None]:
        """Wait until a connection is free, at most `CONNECTION_WAIT` seconds."""
        if self._turns is None:
            yield
            return
        async with contextlib.AsyncExitStack() as stack:
            turn = self._turns.turn(urgent=sent.urgent, timeout=CONNECTION_WAIT)
            try:
                await stack.enter_async_context(turn)
            except TimeoutError as error:
                text = f"no connection was free within {CONNECTION_WAIT:g} s"
                raise errors.Unavailable(sent.name, 0, text) from error
            yield

    def _note(self, *, answered: bool) -> None:
        """Notice the end of an outage."""
        if not answered:
            self._unanswered = True
            return
        now = _monotonic()
        ended = self._unanswered and now - self._answered_at >= OUTAGE
        self._answered_at, self._unanswered = now, False
        if ended:
            logger.info("the API server answers again")
            self._recovered()

    async def _send(self, sent: _Sent) -> bytes:
        started = _monotonic()
        code = "<error>"
        try:
            serialized = await self._serialize(sent)
            response = await self._api.call_api(*serialized, _request_timeout=TIMEOUT)
            if self._time_observer is not None:
                self._time_observer.heard(response.getheader("Date"), started)
            payload: bytes = await response.read()
            code = str(response.status)
            if response.status >= 400:
                delay = response.getheader("Retry-After")
                raise errors.from_response(sent.name, sent.method, response.status, payload, delay)
            return payload
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            text = f"{type(error).__name__}: {error}"
            raise errors.Unavailable(sent.name, 0, text) from error
        finally:
            if self._observer is not None:
                self._observer.observe_request(sent.method, code, _monotonic() - started)


def _exists(file: str) -> bool:
    return Path(file).expanduser().is_file()


async def _configuration(kubeconfig: str, context: str) -> Configuration:
    configuration = Configuration()
    if not (kubeconfig or context):
        with contextlib.suppress(config.ConfigException):
            config.load_incluster_config(client_configuration=configuration)
            return configuration
    files = kubeconfig or os.environ.get("KUBECONFIG") or KUBECONFIG
    if not any(map(_exists, files.split(os.pathsep))):
        raise errors.NotConfigured(
            f"there is no kubeconfig {files}: give --kubeconfig FILE, or set KUBECONFIG"
        )
    try:
        await config.load_kube_config(
            config_file=kubeconfig or None,
            context=context or None,
            client_configuration=configuration,
        )
    except (config.ConfigException, OSError, yaml.YAMLError) as error:
        raise errors.NotConfigured(
            f"the kubeconfig {files} cannot be used: {error}: give --kubeconfig FILE or --context"
            " NAME"
        ) from error
    return configuration


class _ApiClient(ApiClient):
    def sanitize_for_serialization(self, obj: Any) -> Any:
        """Nothing: bodies are plain JSON, so a walk through them to convert models is a fifth of
        the CPU time of a request that creates a pod.
        """
        return obj


def api_client(configuration: Configuration) -> ApiClient:
    """The package's client, without its work for each request that the operator does not need.

    By default it reads the environment's proxies and a ``.netrc`` in a thread before every request
    (aiohttp's ``trust_env``), which is half of the CPU time of a request. The environment does not
    change, so the proxy is looked up once. Must be called in the event loop.
    """
    configuration.client_session_kwargs = {
        "trust_env": False,
        "cookie_jar": aiohttp.DummyCookieJar(),
    }
    if not configuration.proxy:
        configuration.proxy = _proxy(URL(configuration.host))
    return _ApiClient(configuration)


def _proxy(server: URL) -> str | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for the API server, or None."""
    if urllib.request.proxy_bypass(server.host or ""):
        return None
    return urllib.request.getproxies().get(server.scheme)


def _parsed(
    payload: bytes | msgspec.Raw, request: str, decoder: msgspec.json.Decoder[Any] = _OBJECTS
) -> Any:
    """Raises ValueError, and Unavailable for a custom resource that is nested too deeply for the
    parser (the API server accepts 10,000 levels).
    """
    try:
        return decoder.decode(payload)
    except RecursionError as error:
        raise errors.Unavailable(request, 200, "an object is nested too deeply") from error


def _monotonic() -> float:
    return asyncio.get_running_loop().time()
