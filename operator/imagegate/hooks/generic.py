"""Any sender of JSON: a CI job, or a sender of CloudEvents, structured or binary.

The image is in ``data.image`` or ``image``. The proof is a signature, ``X-Signature:
sha256=<hex>``, or, for senders that cannot sign, one of the secrets in ``Authorization``.
"""

from __future__ import annotations

from imagegate.hooks import body, verify
from imagegate.hooks.event import Delivery, Fetch, Malformed, Parsed, Receiver, Source

_SIGNATURE = "x-signature"


class _Data(body.Part):
    image: body.Text


class _Event(body.Part):
    id: body.Text | None = None
    data: _Data | None = None
    image: body.Text | None = None


async def by_signature_or_secret(delivery: Delivery, receiver: Receiver, _: Fetch) -> None:
    if _SIGNATURE in delivery.headers:
        verify.by_hmac(delivery, receiver, _SIGNATURE, "sha256", "sha256=")
    else:
        verify.by_header(delivery, receiver, "authorization")


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    event = body.read(_Event, delivery)
    text = event.data.image if event.data is not None else event.image
    if not text:
        raise Malformed("data.image: there is none")
    image = body.reference(text, "data.image")
    # In binary mode the attributes of the event are headers, and the body is only the data.
    return Parsed((body.named(image),), id=event.id or delivery.headers.get("ce-id", ""))


SOURCE = Source("generic", parse, by_signature_or_secret, signs=True)
