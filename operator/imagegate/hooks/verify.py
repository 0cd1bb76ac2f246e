"""What proves that a delivery comes from the registry: a secret in a header, or an HMAC with one.

A receiver without secrets accepts what finds its path: that is all that some senders can prove.
Any one of several secrets will do, and all of them are compared, each in constant time: neither
how much of one is right nor which one it was can be told from how long it takes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from imagegate.hooks.event import Delivery, Fetch, Receiver, Unverified


def by_header(delivery: Delivery, receiver: Receiver, name: str, prefix: str = "") -> None:
    """The header ``name`` (lower case) holds ``prefix`` and one of the secrets.

    In ``authorization`` a secret may also stand behind ``Bearer``, or as the ``user:password`` of
    ``Basic``. Raises Unverified.
    """
    if not receiver.secrets:
        return
    value = _header(delivery, name, prefix)
    shown = [_bytes(value.removeprefix(prefix))]
    if name == "authorization":
        shown += _credentials(value)
    if not _equal_any(shown, [_bytes(secret) for secret in receiver.secrets]):
        raise Unverified(f"the header {name} holds none of the receiver's secrets")


def by_hmac(
    delivery: Delivery, receiver: Receiver, header: str, algorithm: str, prefix: str = ""
) -> None:
    """The header (lower case) holds ``prefix`` and the HMAC of the body in hex digits.

    ``algorithm`` is a name of hashlib's: ``sha256``. Raises Unverified.
    """
    if not receiver.secrets:
        return
    value = _header(delivery, header, prefix)
    digests = [
        hmac.new(_bytes(secret), delivery.body, getattr(hashlib, algorithm)).hexdigest().encode()
        for secret in receiver.secrets
    ]
    if not _equal_any([_bytes(value.removeprefix(prefix).strip().lower())], digests):
        raise Unverified(f"the signature in {header} is not that of any of the receiver's secrets")


def _header(delivery: Delivery, name: str, prefix: str) -> str:
    value = delivery.headers.get(name)
    if value is None:
        raise Unverified(f"there is no header {name}")
    if not value.startswith(prefix):
        raise Unverified(f"the header {name} does not begin with {prefix!r}")
    return value


async def authorization(delivery: Delivery, receiver: Receiver, _: Fetch) -> None:
    """For senders that are told what to send as ``Authorization``."""
    by_header(delivery, receiver, "authorization")


async def by_path(_: Delivery, __: Receiver, ___: Fetch) -> None:
    """For senders that can prove nothing: who knows the path is believed."""


def _credentials(value: str) -> list[bytes]:
    scheme, _, rest = value.partition(" ")
    rest = rest.strip()
    match scheme.lower():
        case "bearer":
            return [_bytes(rest)]
        case "basic":
            try:
                return [base64.b64decode(_bytes(rest), validate=True)]
            except binascii.Error:
                return []
        case _:
            return []


def _equal_any(shown: list[bytes], expected: list[bytes]) -> bool:
    found = False
    for one in shown:
        for other in expected:
            found |= hmac.compare_digest(one, other)
    return found


def _bytes(text: str) -> bytes:
    """Headers that are no UTF-8 come with surrogates."""
    return text.encode("utf-8", "surrogateescape")
