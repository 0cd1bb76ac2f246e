"""Which messages of SNS are believed, and which URLs are fetched because of them."""

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
async def test_what_aws_signed(name: str, day: datetime) -> None:
    """Real messages and the certificates that they name: the signed text is as AWS builds it."""
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
async def test_notification(version: str, more: dict[str, Any]) -> None:
    sent = message(version, **more)
    await verify(sent)
    assert parse(sent) == Parsed((PUSHED,), sent["MessageId"])


@pytest.mark.parametrize("version", ["1", "2"])
async def test_subscription(version: str) -> None:
    sent = confirmation(version)
    await verify(sent)
    assert parse(sent) == Parsed((), sent["MessageId"], None, sent["SubscribeURL"])


async def test_the_end_of_a_subscription_is_not_undone() -> None:
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
async def test_forged(changed: dict[str, Any]) -> None:
    with pytest.raises(Unverified):
        await verify({**message(), **changed})


@pytest.mark.parametrize("changed", ["SubscribeURL", "Token"])
async def test_forged_confirmation(changed: str) -> None:
    sent = confirmation()
    with pytest.raises(Unverified, match="Signature"):
        await verify({**sent, changed: sent[changed] + "0"})


async def test_signed_by_somebody_else() -> None:
    with pytest.raises(Unverified, match="Signature"):
        await verify(message(key=rsa_key("forger")))


@pytest.mark.parametrize("topic", ["", TOPIC + "2", TOPIC.replace("123", "999"), TOPIC.upper()])
async def test_a_topic_of_somebody_else(topic: str) -> None:
    """SNS signs for everybody; nothing is fetched for those who do not even know the topic."""
    pages = web()
    with pytest.raises(Unverified, match="topic"):
        await verify(message(TopicArn=topic), pages)
    assert pages.asked == []


async def test_no_topic_is_configured() -> None:
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
async def test_a_certificate_of_somebody_else(url: str) -> None:
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
async def test_hosts_of_sns(host: str) -> None:
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
def test_nothing_else_is_visited(url: str | None) -> None:
    with pytest.raises(Malformed, match="SubscribeURL"):
        parse(confirmation(SubscribeURL=url))


@pytest.mark.parametrize("pem", [b"", b"no certificate", b"\xff", certificate()[:200]])
async def test_a_certificate_that_is_none(pem: bytes) -> None:
    with pytest.raises(Unverified, match="certificate"):
        await verify(message(), web(pem))


async def test_no_certificate_to_be_had() -> None:
    with pytest.raises(Unverified, match="404"):
        await verify(message(), Web({}))


async def test_a_certificate_that_is_over() -> None:
    with pytest.raises(Unverified, match="not valid now"):
        await verify(message(), web(certificate(-1)))


async def test_a_certificate_for_another_algorithm() -> None:
    with pytest.raises(Unverified, match="RSA"):
        await verify(message(), web(certificate(elliptic=True)))


async def test_a_message_to_another_topic_does_not_read_as_one_to_ours() -> None:
    """Whoever has a topic chooses what SNS signs there: here a text that ends like one of ours."""
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
async def test_only_the_message_has_line_breaks(field: str, text: str) -> None:
    with pytest.raises(Unverified, match=field):
        await verify({**message(), field: text})


def test_the_type_has_to_be_one_of_theirs() -> None:
    with pytest.raises(Malformed, match="Type"):
        parse({**message(), "Type": "Other"})


@pytest.mark.parametrize("inner", ["", "Hello world", "[]", "[" * 100_000, '{"source":"aws.ecr"}'])
def test_what_is_in_it_is_no_event(inner: str) -> None:
    with pytest.raises(Malformed):
        parse(message(Message=inner))


async def test_raw_delivery_is_not_signed() -> None:
    with pytest.raises(Unverified, match="no signed message"):
        await verify(recorded("ecr.json"))


@settings(deadline=None)
@given(st.binary())
async def test_any_body(data: bytes) -> None:
    with pytest.raises(Unverified):
        await verify(data)


FIELDS = [*message(), "Subject", "Token", "SubscribeURL"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), st.none() | st.text() | st.integers()))
async def test_any_change(changed: dict[str, Any]) -> None:
    """Whatever is put in the place of what was signed: it is refused, and nothing else happens."""
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


def test_the_text_that_is_signed() -> None:
    """Byte by byte as AWS' documentation shows it, with a subject and without."""
    sent = message(Message="m", MessageId="i", Timestamp="t", TopicArn="a")
    read = sns.Message.model_validate(sent)
    assert (
        sns.signed(read)
        == b"Message\nm\nMessageId\ni\nTimestamp\nt\nTopicArn\na\nType\nNotification\n"
    )
    read = sns.Message.model_validate({**sent, "Subject": "s"})
    assert b"MessageId\ni\nSubject\ns\nTimestamp\nt\n" in sns.signed(read)
