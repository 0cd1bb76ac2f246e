"""Types that all sources of push events share: the delivery, and the pushes that it reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from imagegate.errors import ImagegateError


class Malformed(ImagegateError):
    """The delivery does not have the form that this source sends; the text names the wrong part."""


class Unverified(ImagegateError):
    """The delivery has no proof that it comes from the registry. The text is only for the log,
    because the sender must get nothing but 404.
    """


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request as it was received. Nothing in it has been verified."""

    headers: Mapping[str, str]
    """By name, in lower case."""
    body: bytes
    method: str = "POST"
    """POST; OPTIONS for the handshake of a CloudEvents sender."""


@dataclass(frozen=True, slots=True)
class Push:
    """A tag that was pushed, according to an event."""

    repository: str
    """Without the registry: ``team/app``."""
    tag: str = ""
    """Empty: the event names no tag; every tag of the repository is checked."""
    registry: str = ""
    """``host[:port]`` as in image references. Empty: the event names none. The receiver's setting
    has priority."""


@dataclass(frozen=True, slots=True)
class Told:
    """A verified push, with the names of image references, and the receiver that reported it."""

    push: Push
    receiver: str
    source: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a sender that expects more than 202."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The content of one delivery. It may have no push, because most events report other things."""

    pushes: tuple[Push, ...] = ()
    id: str = ""
    """The sender's id of the delivery, by which a repetition is recognised; empty: no id."""
    answer: Answer | None = None
    visit: str = ""
    """A URL whose request confirms a subscription; the source has checked its host."""


@dataclass(frozen=True, slots=True)
class TokenRule:
    """The claims that a signed token (JWT) must have."""

    issuer: str
    audience: str
    email: str = ""
    """The service account that signs; empty: the claim is not checked."""
    keys_url: str = ""
    """Where the issuer publishes its keys (JWKS); empty: the source's own default."""
    application: str = ""
    """The client (``azp``, ``appid``) to which the token was issued; empty: the source's own
    default."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """One endpoint, ``/hooks/<path>``, as the administrator configured it."""

    name: str
    """For logs; never secret."""
    source: str
    path: str
    """Hard to guess, because it is the only proof of a sender that sends no other proof."""
    registry: str = ""
    """``host[:port]`` as in image references. It replaces the registry in events, which may be a
    name that only the registry's own network knows. Empty: the registry in the event is used. A
    path after the host is put before the repository, because images may be pulled through another
    repository than the one they are pushed to.
    """
    secrets: tuple[str, ...] = ()
    """Each of them is accepted, so that secrets can be rotated without lost deliveries."""
    token: TokenRule | None = None
    topics: tuple[str, ...] = ()
    """For SNS: the topics (ARNs) whose messages are accepted."""
    path_only: bool = False
    """The path is the only proof, although the source could send a better one."""


class Fetch(Protocol):
    """GET of an ``https`` URL, limited in time and size. The answer is cached."""

    def __call__(self, url: str, *, fresh: bool = False) -> Awaitable[bytes]:
        """Raises ImagegateError. ``fresh``: the cached answer is too old; fetch the URL again,
        unless that was done a moment ago.
        """


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of sender."""

    name: str
    parse: Callable[[Delivery, Receiver], Parsed]
    """Raises Malformed. Called only for verified deliveries."""
    verify: Callable[[Delivery, Receiver, Fetch], Awaitable[None]]
    """Raises Unverified. Compares in constant time."""
    says_registry: bool = True
    """Its events name the registry. If not, the receiver must name it."""
    proofs: frozenset[str] = frozenset({"secrets"})
    """The fields of a receiver that ``verify`` checks: ``secrets``, ``token``, ``topics``. The
    configuration refuses all others, because they would seem to protect the receiver but would not.
    """
    signs: bool = False
    """The secret is the key of an HMAC. An attacker who sees one delivery can try keys offline, so
    a key must be longer than a password."""
    max_body: int = 64 << 10
    """Bytes. A delivery usually has a few KiB."""
    needs: tuple[str, ...] = ()
    """The fields of a receiver that ``verify`` requires, by their names in the file: ``topics``,
    ``token.email``.
    """
