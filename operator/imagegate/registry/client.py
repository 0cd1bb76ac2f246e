"""Client for registries: reads digests, manifests and configurations.

It uses the API of the OCI distribution specification, and behaves as containerd's resolver, because
the nodes will ask the same registry with the same credentials.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp.abc import AbstractResolver
from yarl import URL

from imagegate.api.references import DEFAULT_TAG, Reference, valid_digest
from imagegate.registry import challenges, endpoints, errors, failures, large, tokens
from imagegate.registry.endpoints import RegistrySettings
from imagegate.registry.keychain import EMPTY, Keyring
from imagegate.registry.large import Room, Rooms
from imagegate.registry.limits import Timing
from imagegate.registry.providers import Providers
from imagegate.registry.pull_secrets import ANONYMOUS, Credential
from imagegate.registry.tags import MAX_PAGE, PAGE, Pages
from imagegate.registry.tokens import Access, Tokens
from imagegate.registry.transport import Answer, RegistryObserver, Request, Transport

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

MAX_MANIFEST = 4 * 1024 * 1024
"""Largest manifest in bytes: the limit of the distribution specification."""
MAX_CONFIG = 4 * 1024 * 1024
"""Largest configuration of an image in bytes."""

_ACCEPT = {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}"}
_SAYS_ENOUGH = (401, 404, 408, 429)
"""Refusals of a HEAD for which the status is enough. After any other refusal, one GET is sent:
some proxies forbid HEAD, and a policy of the registry (412, 403, 451) is explained in a body, which
an answer to HEAD does not have."""
_NO_HEAD = 501

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index: JSON whose bytes had this digest."""

    digest: str
    media_type: str
    """As the registry reports it; may be empty or wrong."""
    content: Mapping[str, Any]


class Client:
    """One client serves any number of registries and tasks. Create it in a running event loop.

    All matching credentials are tried in turn, as in the kubelet, until one is neither refused nor
    answered with 404: first those of the keyring, then those of the credential providers. Every
    method raises `errors.RegistryError`:

    - `NotFound`, `Unauthorized`: the error of the last credential, or the first 404;
    - `NoCredentials`: the same, and a credential provider failed that might have the right one;
    - `Throttled`, `Unavailable`: try again later. The client repeats a request only after a login;
    - `TLSFailed`, `Invalid`: another attempt is useless.
    """

    def __init__(
        self,
        settings: RegistrySettings | None = None,
        *,
        observer: RegistryObserver | None = None,
        resolver: AbstractResolver | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Raises `InvalidSettings` for an invalid CA bundle."""
        self._settings = settings or RegistrySettings()
        timing = timing or Timing()
        self._transport = Transport(
            self._settings, observer=observer, resolver=resolver, timing=timing
        )
        self._rooms = Rooms()
        self._tokens = Tokens(self._transport, self._settings, timing)
        self._providers = Providers(self._settings.credential_providers, timing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._providers.close()
        await self._transport.close()

    async def resolve(self, reference: Reference, keyring: Keyring = EMPTY) -> str:
        """The digest (`sha256:…`) that the tag has now: of the index, if there is one.

        containerd records the same digest for the image, so it can be compared with a node's
        status. Sends a HEAD, which Docker Hub does not count as a pull. If the registry refuses
        HEAD or names no digest, sends a GET, which counts. A reference with a digest needs no
        request.
        """
        if reference.digest is not None:
            return reference.digest
        tag = reference.tag or DEFAULT_TAG

        async def ask(access: Access, room: Room) -> str:
            answer = await self._manifest(access, room, "HEAD", tag)
            digest = valid_digest(answer.headers.get("Docker-Content-Digest", ""))
            # A captive portal answers every path with a web page. Read it, to report it as such.
            web_page = answer.headers.get("Content-Type", "").startswith("text/")
            if answer.status != 200 or digest is None or web_page:
                answer = await self._manifest(access, room, "GET", tag)
                return (await _document(access, tag, answer)).digest
            return digest

        return await self._each(reference, keyring, ask)

    async def manifest(
        self, reference: Reference, digest: str, keyring: Keyring = EMPTY
    ) -> Document:
        """The manifest or index with this digest in the reference's repository; the digest is
        verified.
        """

        async def ask(access: Access, room: Room) -> Document:
            answer = await self._manifest(access, room, "GET", digest)
            return await _document(access, digest, answer)

        return await self._each(reference, keyring, ask)

    async def configuration(
        self, reference: Reference, digest: str, keyring: Keyring = EMPTY
    ) -> object:
        """An image's configuration; the digest is verified. None if it is not JSON.

        Many registries redirect this request to a blob store.
        """

        async def ask(access: Access, room: Room) -> object:
            url = self._url(access, f"blobs/{digest}")
            request = Request("GET", url, {}, MAX_CONFIG, room=room)
            answer = await self._ask(access, request, f"blob {digest}")
            _verify(access, digest, answer.body)
            return await large.parse(answer.body)

        return await self._each(reference, keyring, ask)

    async def tags(self, reference: Reference, keyring: Keyring = EMPTY) -> tuple[str, ...]:
        """All tags of the reference's repository (`registry.tags`), in the order of the registry.

        No request of it counts as a pull at Docker Hub. Raises `InvalidAnswer` beyond the limits of
        `registry.tags`.
        """

        async def ask(access: Access, room: Room) -> tuple[str, ...]:
            pages = Pages(access.registry, access.path)
            url: URL | None = self._url(access, f"tags/list?n={PAGE}")
            while url is not None:
                request = Request("GET", url, {}, MAX_PAGE, room=room)
                answer = await self._ask(access, request, f"the list of tags of {access.path}")
                url = pages.add(await large.parse(answer.body), answer.headers.get("Link"), url)
            return pages.tags

        return await self._each(reference, keyring, ask)

    async def _each(
        self, reference: Reference, keyring: Keyring, ask: Callable[[Access, Room], Awaitable[T]]
    ) -> T:
        """Ask with each credential until one is accepted."""
        plain = endpoints.base(reference.domain, self._settings).scheme == "http"
        failure: errors.RegistryError | None = None
        problems: list[str] = []
        async with aclosing(self._credentials(reference, keyring, problems)) as credentials:
            async for credential in credentials:
                known = ANONYMOUS if credential.anonymous else credential
                try:
                    access = Access(reference.domain, reference.path, known, plain)
                    async with self._rooms.open(reference.domain) as room:
                        return await ask(access, room)
                except errors.NotFound as error:
                    # The 404 of an accepted credential says more than the refusal of another.
                    failure = error if not isinstance(failure, errors.NotFound) else failure
                except errors.Unauthorized as error:
                    failure = error if not isinstance(failure, errors.NotFound) else failure
        assert failure is not None
        if problems:
            failure = errors.NoCredentials(
                reference.domain,
                f"{failure.problem}, and {'; '.join(problems)}",
                "check the plugin's configuration, and the operator's rights in the cloud",
                status=failure.status,
            )
        raise failure

    async def _credentials(
        self, reference: Reference, keyring: Keyring, problems: list[str]
    ) -> AsyncGenerator[Credential, None]:
        """The credentials in the kubelet's order. Errors of plugins are added to `problems`.

        Plugins run only after all pull secrets have failed, because a plugin may take a minute.
        Each credential is tried only once, because repeated wrong passwords may lock an account.
        """
        secrets = dict.fromkeys(keyring.lookup(reference))
        for credential in secrets:
            yield credential
        plugins = await self._providers.lookup(reference.name)
        problems += plugins.problems
        for credential in dict.fromkeys(plugins.credentials):
            if credential not in secrets:
                yield credential
        if not secrets and not plugins.credentials:
            yield ANONYMOUS

    async def _manifest(self, access: Access, room: Room, method: str, name: str) -> Answer:
        url = self._url(access, f"manifests/{name}")
        counted = method == "GET"
        request = Request(method, url, _ACCEPT, MAX_MANIFEST, counted=counted, room=room)
        separator = "@" if ":" in name else ":"
        return await self._ask(access, request, f"{access.path}{separator}{name}")

    async def _ask(self, access: Access, request: Request, what: str) -> Answer:
        """Send a request, after a login if the registry asks for it. Returns a success or a refused
        HEAD; other answers are raised as errors.
        """

        def login(header: str | None) -> Request:
            return request.with_login(header, tokens.secrets_of(access.credential, header))

        header = self._tokens.known(access)
        answer = await self._transport.exchange(access.registry, login(header))
        if answer.status == 401 and answer.url.origin() == request.url.origin():
            offered = challenges.parse(answer.challenges)
            renewed = await self._tokens.authorize(access, offered, refused=header)
            if renewed != header:
                header = renewed
                answer = await self._transport.exchange(access.registry, login(header))
        refused = request.method == "HEAD" and (
            answer.status == _NO_HEAD
            or (400 <= answer.status < 500 and answer.status not in _SAYS_ENOUGH)
        )
        if answer.status == 200 or refused:
            return answer
        raise _refusal(access, login(header), answer, what, self._tokens.withheld_from(access))

    def _url(self, access: Access, rest: str) -> URL:
        base = endpoints.base(access.registry, self._settings)
        path, _, query = rest.partition("?")
        return base.with_path(f"/v2/{access.path}/{path}", encoded=True).with_query(query or None)


async def _document(access: Access, name: str, answer: Answer) -> Document:
    """The manifest in the answer to a GET, by tag or by digest. Raises `InvalidAnswer`."""
    digest = valid_digest(name) or valid_digest(answer.headers.get("Docker-Content-Digest", ""))
    asked = digest is not None
    if digest is None:
        digest = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
    content = await large.parse(answer.body)
    # The digest of a signed manifest of schema 1 is the digest of the signed part, without the
    # signatures. Such a manifest is not verified, because nothing but its schema is used.
    signed = isinstance(content, dict) and content.get("schemaVersion") == 1
    if asked and not signed:
        _verify(access, digest, answer.body)
    if answer.body.startswith(b"{") and large.has_too_many_parts(answer.body):
        raise errors.InvalidAnswer(
            access.registry,
            f"its manifest for {access.path} has more than {large.MOST_PARTS} parts in"
            f" {len(answer.body)} bytes",
            "push the image again with fewer layers and annotations",
            status=answer.status,
        )
    if not isinstance(content, dict) or content.get("schemaVersion") not in (1, 2):
        kind = answer.headers.get("Content-Type", "")[:60]
        raise errors.InvalidAnswer(
            access.registry,
            f"{failures.who(access.registry, answer.url)} sent no manifest for"
            f" {access.path} but {json.dumps(kind) if kind else 'something without a type'}",
            "check that this is a registry, and no login page or proxy before it",
            status=answer.status,
        )
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return Document(digest, media_type, content)


def _verify(access: Access, digest: str, body: bytes) -> None:
    algorithm, _, encoded = digest.partition(":")
    if hashlib.new(algorithm, body).hexdigest() != encoded:
        raise errors.InvalidAnswer(
            access.registry,
            f"the {len(body)} bytes that it sent for {access.path} are not of {digest}",
            "something between here and the registry changes or cuts answers: check the proxy",
        )


def _refusal(
    access: Access, request: Request, answer: Answer, what: str, withheld_from: str
) -> errors.RegistryError:
    """The error for an answer that is not a success."""
    registry, status = access.registry, answer.status
    said = errors.quoted(status, answer.body, request.secrets)
    if answer.url.origin() != request.url.origin():
        host = failures.who(registry, answer.url)
        return errors.Unavailable(
            registry,
            f"{host}, where it redirects to for {what}, answered {status}",
            "it is asked again later; check the registry's storage if it stays so",
            status=status,
        )
    match status:
        case 404:
            hint = "; a private one needs imagePullSecrets" if access.credential.anonymous else ""
            if withheld_from:
                hint = f"; {tokens.remedy(access, withheld_from)}"
            return errors.NotFound(
                registry,
                f"{what} was not found ({said})",
                f"check the name and the tag{hint}",
                status=status,
            )
        case 401 | 403:
            return errors.Unauthorized(
                registry,
                f"{what} is refused ({said})",
                tokens.remedy(access, withheld_from),
                status=status,
            )
        case 412 | 451:
            return errors.InvalidAnswer(
                registry,
                f"its policy refuses {what} ({said})",
                "check that policy: it may require a scan without findings, a signature, or the end"
                " of a quarantine",
                status=status,
            )
        case _:
            return errors.InvalidAnswer(
                registry,
                f"it answered {said} for {what}",
                failures.no_plain(registry)
                if access.plain
                else "check that this is a registry, and no proxy before it",
                status=status,
            )
