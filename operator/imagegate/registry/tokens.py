"""Logging in: the `Authorization` header that answers a registry's challenge.

Bearer tokens are fetched as the distribution project describes (spec/auth/token.md and oauth.md),
Basic is answered directly. A header that worked is kept per registry, scope and credential, so that
the next request needs no challenge.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from yarl import URL

from imagegate.registry import endpoints, errors, failures, realms
from imagegate.registry.cache import Cache
from imagegate.registry.challenges import Challenge
from imagegate.registry.endpoints import RegistrySettings
from imagegate.registry.limits import Timing
from imagegate.registry.pull_secrets import ANONYMOUS, Credential
from imagegate.registry.transport import Answer, Request, Transport

DEFAULT_LIFETIME = 60.0
"""Lifetime in seconds of a token whose answer does not contain it (spec/auth/token.md)."""
LONGEST_LIFETIME = 3600.0
"""Longest use of a token in seconds, even if its service allows more, because rights may be
withdrawn."""
MARGIN = 10.0
"""Seconds before its expiry from which a token is not used; less for a short-lived token."""
MAX_TOKEN = 64 * 1024
"""Bytes of a token service's answer."""
KEPT = 2048
"""Largest number of tokens in memory."""
KEPT_BYTES = 8 * 1024 * 1024
"""Largest size of all tokens in memory, because one token may have 64 KiB."""


@dataclass(frozen=True, slots=True)
class Access:
    """A repository and the credential to pull from it. A token is valid for one such pair only."""

    registry: str
    path: str
    credential: Credential
    plain: bool = field(default=False, compare=False)
    """Whether the registry itself is accessed without TLS."""

    @property
    def scope(self) -> str:
        return f"repository:{self.path}:pull"


@dataclass(frozen=True, slots=True)
class _Granted:
    header: str = field(repr=False)
    until: float
    withheld_from: str = ""
    """The token service that was asked without the credentials, if any."""


@dataclass(frozen=True, slots=True)
class _Login:
    header: str = field(repr=False)
    lifetime: float
    """Seconds."""
    withheld_from: str = ""


def _weight(access: Access, granted: _Granted) -> int:
    return 500 + len(granted.header) + sum(map(len, access.credential.secrets))


class Tokens:
    def __init__(self, transport: Transport, settings: RegistrySettings, timing: Timing) -> None:
        self._transport = transport
        self._settings = settings
        self._timing = timing
        self._granted: Cache[Access, _Granted] = Cache(KEPT, most_bytes=KEPT_BYTES, weigh=_weight)

    def known(self, access: Access) -> str | None:
        """The header that worked last, unless it has expired."""
        granted = self._granted.get(access)
        if granted is None or granted.until <= self._timing.monotonic():
            return None
        return granted.header

    async def authorize(
        self, access: Access, challenges: Sequence[Challenge], refused: str | None
    ) -> str:
        """The header that answers a 401; `refused` is the header that got the 401, if any.

        Many requests of one access cause one login. Raises `Unauthorized`, `InvalidAnswer`, and
        what `Transport.exchange` raises.
        """
        async with self._granted.turn(access):
            known = self.known(access)
            if known is not None and known != refused:
                return known
            login = await self._log_in(access, challenges)
            until = self._timing.monotonic() + login.lifetime - min(MARGIN, login.lifetime / 2)
            self._granted.put(access, _Granted(login.header, until, login.withheld_from))
            return login.header

    def withheld_from(self, access: Access) -> str:
        """The token service that the last login asked without the credentials; empty: none."""
        granted = self._granted.get(access)
        return granted.withheld_from if granted is not None else ""

    async def _log_in(self, access: Access, challenges: Sequence[Challenge]) -> _Login:
        credential = access.credential
        # Bearer first, as in containerd (docker/auth/parse.go), if a registry offers both.
        for challenge in challenges:
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                if credential.registry_token:
                    return _Login(f"Bearer {credential.registry_token}", LONGEST_LIFETIME)
                return await self._fetch(access, challenge)
        if any(challenge.scheme == "basic" for challenge in challenges):
            if not credential.username:
                raise errors.Unauthorized(
                    access.registry,
                    f"{access.path} needs a user name and password",
                    "name a secret that has them for this registry in imagePullSecrets",
                    status=401,
                )
            return _Login(_basic(credential), float("inf"))
        offered = ", ".join(sorted({challenge.scheme for challenge in challenges})) or "none"
        raise errors.InvalidAnswer(
            access.registry,
            f"it asks for a login in no known way (offered: {offered[:100]})",
            "check that this is a registry: Basic and Bearer are known",
            status=401,
        )

    async def _fetch(self, access: Access, challenge: Challenge) -> _Login:
        """Fetch a token from the challenge's realm."""
        credential = access.credential
        secrets = secrets_of(credential)
        realm = _realm(access, challenge.parameters["realm"])
        withheld_from = ""
        if not credential.anonymous and not await self._is_trusted(access, realm):
            credential, withheld_from = ANONYMOUS, realm.raw_host or ""
        query = {"scope": challenge.parameters.get("scope") or access.scope}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        if credential.identity_token:
            form = query | {
                "grant_type": "refresh_token",
                "refresh_token": credential.identity_token,
                "client_id": "imagegate",
            }
            request = Request(
                "POST", realm, {}, MAX_TOKEN, form=form, secrets=secrets, redirects=False
            )
        else:
            basic = _basic(credential) if credential.username else None
            url = realm.extend_query(query)
            request = Request(
                "GET",
                url,
                {},
                MAX_TOKEN,
                authorization=basic,
                secrets=secrets,
                redirects=False,
            )
        answer = await self._transport.exchange(access.registry, request)
        if answer.status != 200:
            raise self._refused(access, answer, withheld_from)
        return _Login(*_token(access, answer), withheld_from)

    async def _is_trusted(self, access: Access, realm: URL) -> bool:
        own = endpoints.base(access.registry, self._settings).raw_host or ""
        listed = self._settings.token_services
        return await realms.may_have_credentials(access.registry, own, realm.raw_host or "", listed)

    def _refused(self, access: Access, answer: Answer, withheld_from: str) -> errors.RegistryError:
        service = failures.who(access.registry, answer.url)
        said = self._transport.quoted(
            access.registry,
            answer.url,
            answer.status,
            answer.body,
            secrets_of(access.credential),
        )
        problem = f"its token service {service} answered {said} for {access.path}"
        # OAuth2 answers 400 to an expired refresh token (RFC 6749, 5.2).
        if answer.status not in (400, 401, 403):
            return errors.InvalidAnswer(
                access.registry, problem, "check the registry's realm", status=answer.status
            )
        return errors.Unauthorized(
            access.registry, problem, remedy(access, withheld_from), status=answer.status
        )


def remedy(access: Access, withheld_from: str) -> str:
    """What to do about a refusal."""
    credential = access.credential
    if credential.anonymous:
        return "name a secret for this registry in imagePullSecrets, or correct the image's name"
    if withheld_from:
        return (
            f"its token service {withheld_from} was asked without credentials, because it is of"
            f" another domain: if it may have them, list {access.registry}={withheld_from} in"
            " registry.tokenServices"
        )
    return f"check the user's rights, and the {credential.source or 'secret that it came from'}"


def secrets_of(credential: Credential, header: str | None = None) -> tuple[str, ...]:
    """Values that must not appear in a text about a request with this credential."""
    found = list(credential.secrets)
    if credential.username:
        found.append(_basic(credential).removeprefix("Basic "))
    if header is not None:
        found.append(header.partition(" ")[2])
    return tuple(found)


def _basic(credential: Credential) -> str:
    # As bytes, as in the kubelet and containerd, because a user name may not be valid UTF-8.
    login = f"{credential.username}:{credential.password}".encode("utf-8", "surrogateescape")
    return "Basic " + base64.b64encode(login).decode()


def _realm(access: Access, text: str) -> URL:
    """The realm's URL. Raises `InvalidAnswer`, also if only the registry has TLS, because a
    password must not be sent without TLS.
    """
    try:
        url = URL(text).with_fragment(None)
        sound = url.scheme in ("http", "https") and bool(url.host) and url.user is None
    except ValueError:
        sound = False
    if not sound or url.password is not None:
        problem = "the realm of its challenge is not an address"
    elif url.scheme == "http" and not access.plain:
        problem = f"its token service {url.host} speaks plain HTTP"
    else:
        return url
    raise errors.InvalidAnswer(
        access.registry, problem, "ask the registry's operator for the right realm", status=401
    )


def _token(access: Access, answer: Answer) -> tuple[str, float]:
    """The header and its lifetime in seconds, from `{"token" | "access_token", "expires_in"}`."""
    try:
        document = json.loads(answer.body)
        token = document.get("access_token") or document.get("token")
        expires = document.get("expires_in")
    except (ValueError, AttributeError, RecursionError):
        token, expires = None, None
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
        raise errors.InvalidAnswer(
            access.registry,
            f"its token service {failures.who(access.registry, answer.url)} sent no token",
            "check the registry's realm",
            status=answer.status,
        )
    lifetime = DEFAULT_LIFETIME
    if isinstance(expires, int | float) and expires > 0:
        lifetime = float(min(expires, LONGEST_LIFETIME))
    return f"Bearer {token}", lifetime
