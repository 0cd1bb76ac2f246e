"""Messages of Amazon SNS over HTTPS: their signatures, and how a subscription is confirmed.

https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html
Everybody may have a topic and let SNS sign what is published there: a signature proves that it
comes from SNS, and only together with the topic's name that it comes from ours.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pydantic import Field, StringConstraints

from imagegate.errors import ImagegateError
from imagegate.hooks import body
from imagegate.hooks.event import Delivery, Fetch, Malformed, Unverified

# Matched as a whole, from what may stand there: nothing to be read in two ways (user info, ports,
# backslashes, other hosts that end alike) gets through, whoever reads the URL after us.
_HOST = r"https://sns\.[a-z]{2,8}(?:-[a-z]{1,16}){1,3}-[0-9]{1,2}\.amazonaws\.com(?:\.cn)?"
_CERTIFICATE = re.compile(_HOST + r"/SimpleNotificationService-[0-9A-Za-z]{1,64}\.pem")
_SUBSCRIBE = re.compile(_HOST + r"/\?[0-9A-Za-z:=&%._~+*-]{1,2000}")

_HASHES = {
    # What a topic signs with unless it is told otherwise (SignatureVersion).
    "1": hashes.SHA1(),  # noqa: S303  # that of the protocol; forging it takes a second preimage
    "2": hashes.SHA256(),
}

_Line = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\r\n]*$")]
"""What is signed is lines. With a line break in another field than the message, whoever publishes
to a topic of their own could have a text signed that also reads as a message of our topic.
"""


class Message(body.Part):
    """What SNS posts, unless it is told to deliver raw: then nothing is signed."""

    type: Literal["Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation"] = Field(
        alias="Type"
    )
    id: _Line = Field(alias="MessageId")
    topic: _Line = Field(alias="TopicArn")
    message: body.LongText = Field(alias="Message")
    timestamp: _Line = Field(alias="Timestamp")
    subject: _Line | None = Field(default=None, alias="Subject")
    token: _Line | None = Field(default=None, alias="Token")
    subscribe_url: _Line | None = Field(default=None, alias="SubscribeURL")
    version: _Line = Field(alias="SignatureVersion")
    signature: _Line = Field(alias="Signature")
    certificate_url: _Line = Field(alias="SigningCertURL")


async def verify(delivery: Delivery, topics: tuple[str, ...], fetch: Fetch, now: datetime) -> None:
    """SNS signed it, for one of the topics. Raises Unverified."""
    try:
        message = body.read(Message, delivery)
    except Malformed as error:
        raise Unverified(f"no signed message of SNS: {error}") from None
    # Before anything is fetched: who does not know the topic makes nobody fetch anything.
    if message.topic not in topics:
        raise Unverified("the topic is none of the receiver's")
    algorithm = _HASHES.get(message.version)
    if algorithm is None:
        raise Unverified("SignatureVersion is neither 1 nor 2")
    if not _CERTIFICATE.fullmatch(message.certificate_url):
        raise Unverified("SigningCertURL is none of SNS")
    try:
        signature = base64.b64decode(message.signature, validate=True)
    except (binascii.Error, ValueError):
        raise Unverified("Signature is not Base64") from None
    key = await _key(message.certificate_url, fetch, now)
    try:
        key.verify(signature, signed(message), padding.PKCS1v15(), algorithm)
    except InvalidSignature:
        raise Unverified("Signature is not that of the message") from None


def signed(message: Message) -> bytes:
    """The text that SNS signs: name and value, a line each, of what the type of message has."""
    return "".join(f"{name}\n{value}\n" for name, value in _signed(message)).encode()


def _signed(message: Message) -> Iterator[tuple[str, str]]:
    confirmation = message.type != "Notification"
    yield "Message", message.message
    yield "MessageId", message.id
    if confirmation:
        yield "SubscribeURL", message.subscribe_url or ""
    elif message.subject is not None:
        yield "Subject", message.subject
    yield "Timestamp", message.timestamp
    if confirmation:
        yield "Token", message.token or ""
    yield "TopicArn", message.topic
    yield "Type", message.type


def confirmation(message: Message) -> str:
    """The URL that confirms the subscription to the message's topic. Raises Malformed."""
    url = message.subscribe_url or ""
    if not _SUBSCRIBE.fullmatch(url):
        raise Malformed("SubscribeURL is none of SNS")
    query = parse_qs(urlsplit(url).query)
    if (query.get("Action"), query.get("TopicArn")) != (["ConfirmSubscription"], [message.topic]):
        raise Malformed("SubscribeURL does not confirm a subscription to the message's topic")
    return url


async def _key(url: str, fetch: Fetch, now: datetime) -> rsa.RSAPublicKey:
    """The certificate is believed because of where it is fetched from; it has no other use."""
    try:
        certificate = x509.load_pem_x509_certificate(await fetch(url))
        key = certificate.public_key()
    except ImagegateError as error:
        raise Unverified(f"no certificate of SNS: {error}") from error
    except (ValueError, UnsupportedAlgorithm):
        raise Unverified("the certificate of SNS is none") from None
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise Unverified("the certificate of SNS is not valid now")
    if not isinstance(key, rsa.RSAPublicKey):
        raise Unverified("the certificate of SNS is not for RSA")
    return key
