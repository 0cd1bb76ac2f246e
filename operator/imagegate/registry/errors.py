"""What can go wrong with a registry, told once.

RegistryError
├── NotFound              404: no such image, or these credentials may not see it
├── Unauthorized          401, 403: no credentials, or ones that the registry refuses
├── NoCredentials         the same two, but a credential provider should have had some, and failed
├── Throttled             429, 503 with Retry-After, or such a pause still runs
├── Unavailable           5xx, no name, no connection, no answer in time, an answer that broke off
├── TLSFailed             the certificate is not trusted, or the other side speaks no TLS
└── Invalid               will not succeed as it is
    ├── InvalidSettings       the operator's own: CA bundle, credential providers
    ├── InvalidSecret         a pull secret that the kubelet cannot read either
    ├── InvalidAnswer         not what a registry answers: no JSON, too large, the wrong digest
    ├── UnsupportedManifest   schema 1, an index within an index
    └── NoSuchPlatform        the image has none of the platform that was asked for

Every text says where, what, and what to do. None ever holds a password, a token, a secret's content
or a signed URL; for the same reason they are raised without a cause, whose text could.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import ClassVar

from imagegate.domain.redact import redact
from imagegate.errors import ImagegateError

LONGEST_QUOTE = 200
"""Characters of a registry's own words in a message."""
LONGEST_PROBLEM = 1000
"""Characters of a problem: a registry chooses the names and addresses that are part of it."""


class RegistryError(ImagegateError):
    """`where` is the registry as references name it, or for `InvalidSecret` the secret."""

    permanent: ClassVar[bool] = False
    """Whether asking again is pointless until a person has changed something."""

    def __init__(self, where: str, problem: str, remedy: str, *, status: int = 0) -> None:
        problem = redact(problem)
        if len(problem) > LONGEST_PROBLEM:
            problem = f"{problem[:LONGEST_PROBLEM]}…"
        super().__init__(f"{where}: {problem}; {remedy}")
        self.where = where
        self.problem = problem
        self.remedy = remedy
        self.status = status
        """The HTTP status, or 0 where there was none."""


class NotFound(RegistryError):
    permanent = True


class Unauthorized(RegistryError):
    permanent = True


class NoCredentials(RegistryError):
    pass


class Throttled(RegistryError):
    """Nothing is sent to this registry for `retry_after` seconds, whoever asks."""

    def __init__(self, where: str, problem: str, retry_after: float, *, status: int = 0) -> None:
        super().__init__(where, problem, f"ask again in {retry_after:.0f} s", status=status)
        self.retry_after = retry_after


class Unavailable(RegistryError):
    pass


class TLSFailed(RegistryError):
    permanent = True


class Invalid(RegistryError):
    permanent = True


class InvalidSettings(Invalid):
    pass


class InvalidSecret(Invalid):
    pass


class InvalidAnswer(Invalid):
    pass


class UnsupportedManifest(Invalid):
    pass


class NoSuchPlatform(Invalid):
    def __init__(
        self, where: str, problem: str, remedy: str, *, offered: tuple[str, ...] = ()
    ) -> None:
        super().__init__(where, problem, remedy)
        self.offered = offered
        """The platforms that the image is there for."""


def quoted(status: int, body: bytes, secrets: Iterable[str] = ()) -> str:
    """Status and the registry's own words, as in `403 DENIED: requested access is denied`.

    The distribution specification's errors are `{"errors": [{"code", "message"}]}`; whatever else
    came is not quoted. Nor is a message that repeats one of `secrets`, as a careless proxy might.
    """
    try:
        first = json.loads(body)["errors"][0]
        code, message = first.get("code"), first.get("message")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return str(status)
    words = ": ".join(part for part in (code, message) if isinstance(part, str) and part)
    words = "".join(c if c.isprintable() else " " for c in words)
    if not words or any(secret in words for secret in secrets if secret):
        return str(status)
    return f"{status} {words[:LONGEST_QUOTE]}"
