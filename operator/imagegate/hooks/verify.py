"""Proofs that a delivery comes from the registry: a secret in a header, or an HMAC.

A receiver without secrets accepts every delivery to its path, because some senders have no other
proof. A receiver with several secrets accepts each of them. All secrets are compared, each in
constant time, so that the duration reveals neither a part of a secret nor which secret matched.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from imagegate.hooks.event import Delivery, Fetch, Receiver, Unverified


def by_header(delivery: Delivery, receiver: Receiver, name: str, prefix: str = "") -> None:
    """Check that the header ``name`` (lower case) holds ``prefix`` and one of the secrets.

    In ``authorization``, a secret may also follow ``Bearer``, or be the ``user:password`` of
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
    """Check that the header (lower case) holds ``prefix`` and the body's HMAC in hex digits.

    ``algorithm`` is a name of hashlib: ``sha256``. Raises Unverified.
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
    """For senders whose ``Authorization`` header can be configured."""
    by_header(delivery, receiver, "authorization")


async def by_path(_: Delivery, __: Receiver, ___: Fetch) -> None:
    """For senders without a proof: the path is the only secret."""


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
    """The text as bytes. Headers that are not UTF-8 contain surrogates."""
    return text.encode("utf-8", "surrogateescape")
