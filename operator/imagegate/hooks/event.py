"""What the sources of push events have in common: what comes in, and what is made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from imagegate.errors import ImagegateError


class Malformed(ImagegateError):
    """What was delivered is not what this source sends; the text says which part."""


class Unverified(ImagegateError):
    """Nothing proves that the delivery comes from the registry. The text is for the log only: the
    sender learns nothing but 404.
    """


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request as it came in. Nothing of it is believed yet."""

    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes
    method: str = "POST"
    """POST; OPTIONS for the handshake of a CloudEvents sender."""


@dataclass(frozen=True, slots=True)
class Push:
    """A tag that was pushed, as far as somebody says so."""

    repository: str
    """Without the registry: ``team/app``."""
    tag: str = ""
    """Empty: the event does not say; every tag of the repository is looked at."""
    registry: str = ""
    """``host[:port]`` as images name it. Empty: the event does not say. The receiver's own setting
    wins."""


@dataclass(frozen=True, slots=True)
class Told:
    """A verified push under the names that images have, and who told of it."""

    push: Push
    receiver: str
    source: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the sender is told, where it expects more than 202."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one delivery means. No push at all is no error: most events are of something else."""

    pushes: tuple[Push, ...] = ()
    id: str = ""
    """The sender's own name for the delivery, by which a second one is told; empty: it has none."""
    answer: Answer | None = None
    visit: str = ""
    """A URL that confirms a subscription when it is fetched; the source has checked its host."""


@dataclass(frozen=True, slots=True)
class TokenRule:
    """What a signed token (JWT) has to say to be accepted."""

    issuer: str
    audience: str
    email: str = ""
    """The service account that signs; empty: the claim is not looked at."""
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
    """Hard to guess: it is what proves a sender that can prove nothing else."""
    registry: str = ""
    """``host[:port]`` as images name it; wins over what events say, which may be a name that only
    the registry's own network knows. Empty: what events say counts. A path behind it comes before
    the repository: images may be pulled through another repository than they are pushed to.
    """
    secrets: tuple[str, ...] = ()
    """Any one of them will do, so that they can be changed without a gap."""
    token: TokenRule | None = None
    topics: tuple[str, ...] = ()
    """Topics (ARNs) that may send, for SNS."""
    path_only: bool = False
    """Whoever knows the path is believed, although the source could prove more."""


class Fetch(Protocol):
    """GET of an ``https`` URL, bounded in time and size, kept for a while."""

    def __call__(self, url: str, *, fresh: bool = False) -> Awaitable[bytes]:
        """Raises ImagegateError. ``fresh``: what was kept has proved too old, and is asked for
        again unless that was done a moment ago.
        """


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of sender."""

    name: str
    parse: Callable[[Delivery, Receiver], Parsed]
    """Raises Malformed. Only called for what was verified."""
    verify: Callable[[Delivery, Receiver, Fetch], Awaitable[None]]
    """Raises Unverified. Compares in constant time."""
    says_registry: bool = True
    """Its events say which registry; otherwise the receiver has to."""
    proofs: frozenset[str] = frozenset({"secrets"})
    """What of a receiver its ``verify`` looks at: ``secrets``, ``token``, ``topics``. Anything else
    is refused in the configuration: it would only look as if it protected something.
    """
    signs: bool = False
    """It uses a secret as the key of an HMAC. Whoever sees one delivery can then try keys without
    asking us, so that a key has to be longer than a password."""
    max_body: int = 64 << 10
    """Bytes. Deliveries have some KiB."""
    needs: tuple[str, ...] = ()
    """What of a receiver its ``verify`` accepts nothing without, as it stands in the file:
    ``topics``, ``token.email``.
    """
