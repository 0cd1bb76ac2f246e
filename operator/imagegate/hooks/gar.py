"""Google Artifact Registry (and the remains of Container Registry), by a push of Pub/Sub.

https://cloud.google.com/artifact-registry/docs/configure-notifications
https://cloud.google.com/pubsub/docs/push
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace

from pydantic import Field

from imagegate.hooks import bearer, body, pushes
from imagegate.hooks.event import (
    Delivery,
    Fetch,
    Malformed,
    Parsed,
    Receiver,
    Source,
    Unverified,
)

KEYS_URL = "https://www.googleapis.com/oauth2/v3/certs"


class _Message(body.Part):
    data: body.LongText
    id: body.Text | None = Field(default=None, alias="messageId")


class _Envelope(body.Part):
    message: _Message


class _Notification(body.Part):
    action: body.Text
    tag: body.Text | None = None
    """In full: ``us-west1-docker.pkg.dev/project/repository/app:1.1``."""


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    message = body.read(_Envelope, delivery).message
    try:
        data = base64.b64decode(message.data, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("message.data: not Base64") from None
    notification = body.read(_Notification, replace(delivery, body=data))
    # A push causes one message without the tag and one with it. The first changes no tag.
    if notification.action != "INSERT" or not notification.tag:
        return Parsed(id=message.id or "")
    image = body.reference(notification.tag, "tag")
    return Parsed(pushes.tagged(image.domain, image.path, image.tag), message.id or "")


async def by_token(delivery: Delivery, receiver: Receiver, fetch: Fetch) -> None:
    rule = receiver.token
    # Every owner of a Google service account can get a signed token for any audience. So only the
    # account's e-mail identifies the configured sender.
    if rule is None or not rule.email:
        raise Unverified("the receiver has no token.email to tell the service account by")
    await bearer.verify(delivery, rule, KEYS_URL, fetch)


SOURCE = Source("gar", parse, by_token, proofs=frozenset({"token"}), needs=("token.email",))
