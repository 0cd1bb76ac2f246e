"""Amazon ECR, by EventBridge: directly from an API destination, or through an SNS topic.

https://docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-eventbridge.html
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

from pydantic import Field

from imagegate.hooks import body, pushes, sns, verify
from imagegate.hooks.event import Delivery, Fetch, Malformed, Parsed, Receiver, Source

_ACCOUNT = re.compile(r"[0-9]{12}")
_REGION = re.compile(r"[a-z]{2,8}(?:-[a-z]{1,16}){1,3}-[0-9]{1,2}")


class _Detail(body.Part):
    result: body.Text | None = None
    action: body.Text | None = Field(default=None, alias="action-type")
    repository: body.Text | None = Field(default=None, alias="repository-name")
    tag: body.Text | None = Field(default=None, alias="image-tag")


class _Event(body.Part):
    source: body.Text
    type: body.Text = Field(alias="detail-type")
    detail: _Detail
    id: body.Text | None = None
    account: body.Text | None = None
    region: body.Text | None = None


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    event = body.read(_Event, delivery)
    detail = event.detail
    pushed = (event.source, event.type, detail.action, detail.result)
    if pushed != ("aws.ecr", "ECR Image Action", "PUSH", "SUCCESS"):
        return Parsed(id=event.id or "")
    return Parsed(pushes.tagged(_host(event), detail.repository, detail.tag), event.id or "")


def _host(event: _Event) -> str:
    """The registry's host. The event does not name it, but contains all its parts."""
    account, region = event.account or "", event.region or ""
    if not _ACCOUNT.fullmatch(account) or not _REGION.fullmatch(region):
        raise Malformed("account and region: not those of an ECR registry")
    suffix = ".cn" if region.startswith("cn-") else ""
    return f"{account}.dkr.ecr.{region}.amazonaws.com{suffix}"


def parse_sns(delivery: Delivery, receiver: Receiver) -> Parsed:
    message = body.read(sns.Message, delivery)
    match message.type:
        case "Notification":
            inner = parse(replace(delivery, body=message.message.encode()), receiver)
            # SNS repeats the MessageId when it repeats a delivery.
            return replace(inner, id=message.id)
        case "SubscriptionConfirmation":
            return Parsed(id=message.id, visit=sns.confirmation(message))
        case "UnsubscribeConfirmation":
            return Parsed(id=message.id)


async def by_sns(delivery: Delivery, receiver: Receiver, fetch: Fetch) -> None:
    await sns.verify(delivery, receiver.topics, fetch, datetime.now(UTC))


SOURCE = Source("ecr", parse, verify.authorization)
SNS = Source(
    "ecr-sns",
    parse_sns,
    by_sns,
    proofs=frozenset({"topics"}),
    needs=("topics",),
    max_body=512 << 10,
)
