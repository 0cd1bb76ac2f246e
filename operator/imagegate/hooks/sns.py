"""Messages of Amazon SNS over HTTPS: their signatures, and the confirmation of a subscription.

https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html
A signature proves only that a message comes from SNS, because every AWS customer can publish to a
topic of their own. So the topic must be one of the receiver's topics, too.
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

# The whole URL must match, and only allowed characters do. So no URL passes that another parser
# could read differently: user info, ports, backslashes, hosts with the same ending.
_HOST = r"https://sns\.[a-z]{2,8}(?:-[a-z]{1,16}){1,3}-[0-9]{1,2}\.amazonaws\.com(?:\.cn)?"
_CERTIFICATE = re.compile(_HOST + r"/SimpleNotificationService-[0-9A-Za-z]{1,64}\.pem")
_SUBSCRIBE = re.compile(_HOST + r"/\?[0-9A-Za-z:=&%._~+*-]{1,2000}")

_HASHES = {
    # The default of a topic (SignatureVersion).
    "1": hashes.SHA1(),  # noqa: S303  # required by SNS; a forgery needs a second preimage
    "2": hashes.SHA256(),
}

_Line = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\r\n]*$")]
"""A field without line breaks, because the signed text consists of lines. With a line break in any
field but the message, an attacker could let SNS sign, for a topic of their own, a text that is also
a valid message of the configured topic.
"""


class Message(body.Part):
    """The body of an SNS delivery. With raw message delivery, the body has no such fields and no
    signature.
    """

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
    """Check that SNS signed the message for one of the topics. Raises Unverified."""
    try:
        message = body.read(Message, delivery)
    except Malformed as error:
        raise Unverified(f"no signed message of SNS: {error}") from None
    # Check the topic before the certificate is fetched, so that senders that do not know the topic
    # cause no requests.
    if message.topic not in topics:
        raise Unverified("the topic is not one of the receiver's topics")
    algorithm = _HASHES.get(message.version)
    if algorithm is None:
        raise Unverified("SignatureVersion is neither 1 nor 2")
    if not _CERTIFICATE.fullmatch(message.certificate_url):
        raise Unverified("SigningCertURL is not a URL of SNS")
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
    """The text that SNS signs: for each field of this message type a line with the name and a line
    with the value.
    """
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
        raise Malformed("SubscribeURL is not a URL of SNS")
    query = parse_qs(urlsplit(url).query)
    if (query.get("Action"), query.get("TopicArn")) != (["ConfirmSubscription"], [message.topic]):
        raise Malformed("SubscribeURL does not confirm a subscription to the message's topic")
    return url


async def _key(url: str, fetch: Fetch, now: datetime) -> rsa.RSAPublicKey:
    """The key of SNS's certificate. It is trusted because it is fetched from SNS by https; its
    chain is not checked.
    """
    try:
        certificate = x509.load_pem_x509_certificate(await fetch(url))
        key = certificate.public_key()
    except ImagegateError as error:
        raise Unverified(f"no certificate of SNS: {error}") from error
    except (ValueError, UnsupportedAlgorithm):
        raise Unverified("the certificate of SNS cannot be read") from None
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise Unverified("the certificate of SNS is not valid now")
    if not isinstance(key, rsa.RSAPublicKey):
        raise Unverified("the certificate of SNS is not for RSA")
    return key
