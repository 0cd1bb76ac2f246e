"""SNS messages: which messages are accepted, and which URLs are fetched because of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegate.hooks import ecr, sns
from imagegate.hooks.event import Malformed, Parsed, Push, Receiver, Unverified
from tests.unit.hooks.signing import (
    CERTIFICATE_URL,
    PAYLOADS,
    TOPIC,
    Web,
    certificate,
    confirmation,
    delivery,
    message,
    recorded,
    rsa_key,
)

PUSHED = Push("my-repository-name", "latest", "123456789012.dkr.ecr.us-west-2.amazonaws.com")
RECEIVER = Receiver(name="r", source="ecr-sns", path="p" * 16, topics=("arn:other", TOPIC))


def web(pem: bytes | None = None) -> Web:
    return Web({CERTIFICATE_URL: certificate() if pem is None else pem})


async def verify(sent: object, pages: Web | None = None, receiver: Receiver = RECEIVER) -> None:
    await ecr.SNS.verify(delivery(sent), receiver, pages or web())


def parse(sent: object) -> Parsed:
    return ecr.SNS.parse(delivery(sent), RECEIVER)


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("sns-sha1.json", datetime(2022, 7, 28, tzinfo=UTC)),
        ("sns-sha256.json", datetime(2022, 7, 28, tzinfo=UTC)),
        ("sns-subject.json", datetime(2017, 6, 20, tzinfo=UTC)),
    ],
)
async def test_message_that_aws_signed_is_accepted(name: str, day: datetime) -> None:
    """Real messages with their certificates show that we build the signed text as AWS does."""
    sent = recorded(name)
    url = sent["SigningCertURL"]
    pages = Web({url: (PAYLOADS / url.rpartition("/")[2]).read_bytes()})
    await sns.verify(delivery(sent), (sent["TopicArn"],), pages, day)
    for part in ("Message", "MessageId", "Timestamp"):
        forged = {**sent, part: sent[part] + " "}
        with pytest.raises(Unverified, match="Signature"):
            await sns.verify(delivery(forged), (sent["TopicArn"],), pages, day)
    later = day + timedelta(days=500)
    with pytest.raises(Unverified, match="not valid now"):
        await sns.verify(delivery(sent), (sent["TopicArn"],), pages, later)


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("more", [{}, {"Subject": "pushed"}, {"Subject": None}])
async def test_notification_is_verified_and_read(version: str, more: dict[str, Any]) -> None:
    sent = message(version, **more)
    await verify(sent)
    assert parse(sent) == Parsed((PUSHED,), sent["MessageId"])


@pytest.mark.parametrize("version", ["1", "2"])
async def test_subscription_confirmation_is_verified_and_read(version: str) -> None:
    sent = confirmation(version)
    await verify(sent)
    assert parse(sent) == Parsed((), sent["MessageId"], None, sent["SubscribeURL"])


async def test_unsubscribe_confirmation_does_not_subscribe_again() -> None:
    sent = confirmation(Type="UnsubscribeConfirmation")
    await verify(sent)
    assert parse(sent) == Parsed((), sent["MessageId"])


@pytest.mark.parametrize(
    "changed",
    [
        {"Message": "{}"},
        {"MessageId": "other"},
        {"Subject": "new"},
        {"Timestamp": "2030-01-01T00:00:00.000Z"},
        {"Type": "SubscriptionConfirmation"},
        {"SignatureVersion": "1"},
        {"SignatureVersion": "3"},
        {"SignatureVersion": ""},
        {"Signature": ""},
        {"Signature": "AAAA"},
        {"Signature": "no base64"},
        {"Signature": "é"},
    ],
    ids=str,
)
async def test_changed_message_is_rejected(changed: dict[str, Any]) -> None:
    with pytest.raises(Unverified):
        await verify({**message(), **changed})


@pytest.mark.parametrize("changed", ["SubscribeURL", "Token"])
async def test_changed_confirmation_is_rejected(changed: str) -> None:
    sent = confirmation()
    with pytest.raises(Unverified, match="Signature"):
        await verify({**sent, changed: sent[changed] + "0"})


async def test_signature_of_another_key_is_rejected() -> None:
    with pytest.raises(Unverified, match="Signature"):
        await verify(message(key=rsa_key("forger")))


@pytest.mark.parametrize("topic", ["", TOPIC + "2", TOPIC.replace("123", "999"), TOPIC.upper()])
async def test_message_of_another_topic_is_rejected_without_a_fetch(topic: str) -> None:
    """SNS signs for every AWS account, so the topic is checked before a certificate is fetched."""
    pages = web()
    with pytest.raises(Unverified, match="topic"):
        await verify(message(TopicArn=topic), pages)
    assert pages.asked == []


async def test_receiver_without_topics_rejects_every_message() -> None:
    with pytest.raises(Unverified, match="topic"):
        await verify(message(), receiver=Receiver(name="r", source="ecr-sns", path="p" * 16))


NAME = "SimpleNotificationService-0123abcd.pem"


@pytest.mark.parametrize(
    "url",
    [
        "",
        f"http://sns.us-west-2.amazonaws.com/{NAME}",
        f"https://evil.test/{NAME}",
        f"https://sns.us-west-2.amazonaws.com.evil.test/{NAME}",
        f"https://sns.us-west-2.amazonaws.com.cn.evil.test/{NAME}",
        f"https://evil.test/sns.us-west-2.amazonaws.com/{NAME}",
        f"https://sns.us-west-2.amazonaws.com@evil.test/{NAME}",
        f"https://sns.us-west-2.amazonaws.com:@evil.test/{NAME}",
        f"https://user:pass@sns.us-west-2.amazonaws.com/{NAME}",
        f"https://evil.test\\@sns.us-west-2.amazonaws.com/{NAME}",
        f"https://evil.test#@sns.us-west-2.amazonaws.com/{NAME}",
        f"https://evil.test?https://sns.us-west-2.amazonaws.com/{NAME}",
        f"https://sns.us-west-2.amazonaws.com:443/{NAME}",
        f"https://sns.us-west-2.amazonaws.com:8443/{NAME}",
        f"https://sns.us-west-2.amazonaws.com./{NAME}",
        f"https://sns.evil.test/sns.us-west-2.amazonaws.com/{NAME}",
        f"https://snsXus-west-2.amazonaws.com/{NAME}",
        f"https://sns.us-west-2Xamazonaws.com/{NAME}",
        f"https://sns.evil.us-west-2.amazonaws.com/{NAME}",
        f"https://sns.amazonaws.com/{NAME}",
        f"https://sns.evil-bucket.s3.amazonaws.com/{NAME}",
        f"https://s3.us-west-2.amazonaws.com/{NAME}",
        "https://sns.us-west-2.amazonaws.com/",
        "https://sns.us-west-2.amazonaws.com/?Action=Publish",
        f"https://sns.us-west-2.amazonaws.com/{NAME}?x=1",
        f"https://sns.us-west-2.amazonaws.com/{NAME}#x",
        f"https://sns.us-west-2.amazonaws.com/../{NAME}",
        f"https://sns.us-west-2.amazonaws.com/bucket/{NAME}",
        "https://sns.us-west-2.amazonaws.com/SimpleNotificationService-%2e%2e.pem",
        f" {CERTIFICATE_URL}",
        f"{CERTIFICATE_URL}\n",
        f"https://sns.us-west-2.amazonaws.com\n.evil.test/{NAME}",
        f"https://sns.us-west-٢.amazonaws.com/{NAME}",
        f"https://sns.us-west-2.amazonaws.com／{NAME}",  # noqa: RUF001
        f"HTTPS://SNS.US-WEST-2.AMAZONAWS.COM/{NAME}",
    ],
)
async def test_certificate_url_outside_sns_is_not_fetched(url: str) -> None:
    pages = Web({url: certificate()})
    with pytest.raises(Unverified, match="SigningCertURL"):
        await verify({**message(), "SigningCertURL": url}, pages)
    assert pages.asked == []


@pytest.mark.parametrize(
    "host",
    [
        "sns.us-east-1.amazonaws.com",
        "sns.us-gov-west-1.amazonaws.com",
        "sns.ap-southeast-7.amazonaws.com",
        "sns.cn-northwest-1.amazonaws.com.cn",
    ],
)
async def test_certificate_is_fetched_from_the_hosts_of_sns(host: str) -> None:
    url = f"https://{host}/{NAME}"
    pages = Web({url: certificate()})
    await verify(message(SigningCertURL=url), pages)
    assert pages.asked == [url]


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        f"http://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=1",
        f"https://evil.test/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=1",
        f"https://sns.us-west-2.amazonaws.com@evil.test/?Action=ConfirmSubscription&TopicArn={TOPIC}",
        f"https://sns.us-west-2.amazonaws.com:8443/?Action=ConfirmSubscription&TopicArn={TOPIC}",
        f"https://sns.us-west-2.amazonaws.com.evil.test/?Action=ConfirmSubscription&TopicArn={TOPIC}",
        f"https://sns.us-west-2.amazonaws.com/?Action=Unsubscribe&TopicArn={TOPIC}&Token=1",
        "https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&Token=1",
        f"https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&TopicArn={TOPIC}2",
        f"https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&Action=X&TopicArn={TOPIC}",
        f"https://sns.us-west-2.amazonaws.com/?TopicArn={TOPIC}",
        f"https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&TopicArn={TOPIC}&x=a b",
        f"https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&TopicArn={TOPIC}\n",
        f"https://sns.us-west-2.amazonaws.com/x?Action=ConfirmSubscription&TopicArn={TOPIC}",
    ],
)
def test_subscribe_url_outside_sns_is_rejected(url: str | None) -> None:
    with pytest.raises(Malformed, match="SubscribeURL"):
        parse(confirmation(SubscribeURL=url))


@pytest.mark.parametrize("pem", [b"", b"no certificate", b"\xff", certificate()[:200]])
async def test_unreadable_certificate_is_rejected(pem: bytes) -> None:
    with pytest.raises(Unverified, match="certificate"):
        await verify(message(), web(pem))


async def test_message_is_rejected_if_its_certificate_cannot_be_fetched() -> None:
    with pytest.raises(Unverified, match="404"):
        await verify(message(), Web({}))


async def test_expired_certificate_is_rejected() -> None:
    with pytest.raises(Unverified, match="not valid now"):
        await verify(message(), web(certificate(-1)))


async def test_certificate_without_an_rsa_key_is_rejected() -> None:
    with pytest.raises(Unverified, match="RSA"):
        await verify(message(), web(certificate(elliptic=True)))


async def test_signed_message_of_another_topic_cannot_pass_as_ours() -> None:
    """The owner of another topic chooses the text that SNS signs there.

    Here that text contains the fields of a message to our topic, separated by line breaks.
    """
    theirs = "arn:aws:sns:us-west-2:999999999999:mine"
    event = json.dumps(recorded("ecr.json"))
    inner = f"{event}\nMessageId\nforged\nTimestamp\nnow\nTopicArn\n{TOPIC}\nType\nNotification"
    real = message(Message=inner, TopicArn=theirs)
    rest = f"\nMessageId\n{real['MessageId']}\nTimestamp\n{real['Timestamp']}"
    forged = {
        **real,
        "Message": event,
        "MessageId": "forged",
        "Timestamp": "now",
        "TopicArn": TOPIC,
        "Type": f"Notification{rest}\nTopicArn\n{theirs}\nType\nNotification",
    }
    with pytest.raises(Unverified, match="Type"):
        await verify(forged)


@pytest.mark.parametrize("field", ["MessageId", "Timestamp", "Subject", "TopicArn"])
@pytest.mark.parametrize("text", ["a\nb", "a\n", "\ra"])
async def test_line_break_outside_the_message_text_is_rejected(field: str, text: str) -> None:
    with pytest.raises(Unverified, match=field):
        await verify({**message(), field: text})


def test_unknown_type_is_malformed() -> None:
    with pytest.raises(Malformed, match="Type"):
        parse({**message(), "Type": "Other"})


@pytest.mark.parametrize("inner", ["", "Hello world", "[]", "[" * 100_000, '{"source":"aws.ecr"}'])
def test_message_without_an_ecr_event_is_malformed(inner: str) -> None:
    with pytest.raises(Malformed):
        parse(message(Message=inner))


async def test_raw_delivery_is_rejected_because_it_is_not_signed() -> None:
    with pytest.raises(Unverified, match="no signed message"):
        await verify(recorded("ecr.json"))


@settings(deadline=None)
@given(st.binary())
async def test_arbitrary_body_is_rejected(data: bytes) -> None:
    with pytest.raises(Unverified):
        await verify(data)


FIELDS = [*message(), "Subject", "Token", "SubscribeURL"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), st.none() | st.text() | st.integers()))
async def test_any_changed_field_makes_the_message_rejected(changed: dict[str, Any]) -> None:
    """A message with changed signed fields raises `Unverified`, and no other exception."""
    sent = {**message(), **changed}
    ignored = {"UnsubscribeURL", "Token", "SubscribeURL"}
    before = {k: v for k, v in message().items() if k not in ignored}
    same = {k: v for k, v in sent.items() if k not in ignored and v is not None} == before
    others = [sent.get(k) for k in ("Token", "SubscribeURL")]
    wrong = [it for it in others if isinstance(it, int) or {"\r", "\n"} & set(it or "")]
    if same and not wrong:
        await verify(sent)
    else:
        with pytest.raises(Unverified):
            await verify(sent)


def test_signed_text_is_as_aws_documents_it() -> None:
    """Each byte is as AWS' documentation shows it, with a subject and without."""
    sent = message(Message="m", MessageId="i", Timestamp="t", TopicArn="a")
    read = sns.Message.model_validate(sent)
    assert (
        sns.signed(read)
        == b"Message\nm\nMessageId\ni\nTimestamp\nt\nTopicArn\na\nType\nNotification\n"
    )
    read = sns.Message.model_validate({**sent, "Subject": "s"})
    assert b"MessageId\ni\nSubject\ns\nTimestamp\nt\n" in sns.signed(read)
