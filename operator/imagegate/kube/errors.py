"""Errors of the API server, mapped once.

KubeError
├── NotFound         404
├── AlreadyExists    409 on create
├── Conflict         409 on write, and 422 when a JSON patch's ``test`` failed: read again
├── Gone             410: the list or watch position was compacted
├── Forbidden        401, 403: the operator's RBAC or token
├── Invalid          400, 422: the same request will never succeed
└── Unavailable      429, 5xx and all network errors: try again later
NotConfigured        it is not known which cluster, or by which credentials
NotLeader            the write was not sent, because this process may no longer be the leader
"""

from __future__ import annotations

import json

from imagegate.errors import ImagegateError


class KubeError(ImagegateError):
    """A request failed. The text has the request, the status and the server's message."""

    def __init__(self, request: str, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{request}: {status or 'no answer'}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after


class NotFound(KubeError):
    pass


class AlreadyExists(KubeError):
    pass


class Conflict(KubeError):
    pass


class Gone(KubeError):
    pass


class Forbidden(KubeError):
    pass


class Invalid(KubeError):
    pass


class Unavailable(KubeError):
    pass


class NotConfigured(ImagegateError):
    pass


class NotLeader(ImagegateError):
    pass


def from_response(
    request: str, method: str, status: int, body: bytes, retry_after: str | None
) -> KubeError:
    """The error for a response with a status of 400 or more.

    Kubernetes answers 422 both for an invalid object and for a JSON patch whose ``test`` failed;
    only the message distinguishes them (apiserver, endpoints/handlers/patch.go).
    """
    try:
        parsed = json.loads(body)
        message, reason = str(parsed.get("message", "")), str(parsed.get("reason", ""))
    except (ValueError, AttributeError):
        message, reason = body[:200].decode(errors="replace"), ""
    delay = float(retry_after) if retry_after is not None and retry_after.isdigit() else 0.0
    kind: type[KubeError]
    match status:
        case 404:
            kind = NotFound
        case 409:
            kind = AlreadyExists if reason == "AlreadyExists" else Conflict
        case 410:
            kind = Gone
        case 401 | 403:
            kind = Forbidden
        case 422 if method == "PATCH" and "the server rejected our request" in message:
            kind = Conflict
        case 429:
            kind = Unavailable
        case _ if status >= 500:
            kind = Unavailable
        case _:
            kind = Invalid
    return kind(request, status, message, delay)
