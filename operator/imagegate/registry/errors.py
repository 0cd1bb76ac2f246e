"""Errors of registries.

RegistryError
├── NotFound              404: no such image, or these credentials may not see it
├── Unauthorized          401, 403: no credentials, or the registry refuses them
├── NoCredentials         404, 401 or 403, and a credential provider has failed
├── Throttled             429, 503 with Retry-After, or such a pause is not over
├── Unavailable           5xx, DNS failure, no connection, timeout, or an incomplete answer
├── TLSFailed             the certificate is not trusted, or the server does not use TLS
└── Invalid               the same request will never succeed
    ├── InvalidSettings       settings of the operator: CA bundle, credential providers
    ├── InvalidSecret         a pull secret that the kubelet cannot read either
    ├── InvalidAnswer         not the answer of a registry: no JSON, too large, wrong digest
    ├── UnsupportedManifest   schema 1, an index within an index
    └── NoSuchPlatform        the image does not exist for the requested platform

Every text contains the place, the problem and the remedy. No text contains a password, a token, a
secret's content or a signed URL. The errors are raised without a cause, because the text of a cause
could contain one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import ClassVar

from imagegate.domain.redact import redact
from imagegate.errors import ImagegateError

LONGEST_QUOTE = 200
"""Longest quote of a registry's message, in characters."""
LONGEST_PROBLEM = 1000
"""Longest problem, in characters. It is cut, because it contains names that a registry chooses."""


class RegistryError(ImagegateError):
    """`where` is the registry as in references; for `InvalidSecret` it is the secret."""

    permanent: ClassVar[bool] = False
    """Whether another attempt is useless until a user has changed something."""

    def __init__(self, where: str, problem: str, remedy: str, *, status: int = 0) -> None:
        problem = redact(problem)
        if len(problem) > LONGEST_PROBLEM:
            problem = f"{problem[:LONGEST_PROBLEM]}…"
        super().__init__(f"{where}: {problem}; {remedy}")
        self.where = where
        self.problem = problem
        self.remedy = remedy
        self.status = status
        """The HTTP status; 0 if there was no answer."""


class NotFound(RegistryError):
    permanent = True


class Unauthorized(RegistryError):
    permanent = True


class NoCredentials(RegistryError):
    pass


class Throttled(RegistryError):
    """No request is sent to this registry for `retry_after` seconds."""

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
        """The platforms for which the image exists."""


def quoted(status: int, body: bytes, secrets: Iterable[str] = ()) -> str:
    """Status and message of the registry, as in `403 DENIED: requested access is denied`.

    Only errors of the distribution specification, `{"errors": [{"code", "message"}]}`, are quoted.
    A message that contains one of `secrets` is not quoted: a careless proxy might repeat them.
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
