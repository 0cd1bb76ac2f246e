"""Azure Container Registry: its own webhook, or Event Grid in one of its two schemas.

https://learn.microsoft.com/azure/container-registry/container-registry-webhook-reference
https://learn.microsoft.com/azure/event-grid/event-schema-container-registry
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from pydantic import AliasChoices, Field, model_validator

from imagegate.hooks import bearer, body, pushes, verify
from imagegate.hooks.event import (
    Answer,
    Delivery,
    Fetch,
    Malformed,
    Parsed,
    Push,
    Receiver,
    Source,
    Unverified,
)

KEYS_URL = "https://login.microsoftonline.com/common/discovery/keys"

EVENT_GRID_APPLICATION = "4962773b-9cdb-44cf-a8bf-237846a00ab7"
"""Event Grid's own application in Azure's public cloud: MicrosoftDocs/azure-docs, in
articles/event-grid/scripts/powershell-webhook-secure-delivery-azure-ad-app.md. Other applications
of the tenant may get a token for the same audience."""

_VALIDATION = "Microsoft.EventGrid.SubscriptionValidationEvent"
_PUSHED = "Microsoft.ContainerRegistry.ImagePushed"
_ORIGIN = re.compile(r"[0-9A-Za-z.-]{1,253}")
_HANDSHAKE_BYTES = 8 << 10
"""A larger event is not parsed as a handshake. The event that validates a subscription has less
than 1 KiB."""
_CODE = re.compile(r"[0-9A-Za-z-]{1,128}")


class _Target(body.Part):
    repository: body.Text | None = None
    tag: body.Text | None = None


class _Request(body.Part):
    host: body.Text | None = None


class _Change(body.Part):
    """A change in the registry: the webhook's whole body, or ``data`` of an Event Grid event."""

    action: body.Text | None = None
    id: body.Text | None = None
    target: _Target | None = None
    request: _Request | None = None
    code: body.Text | None = Field(default=None, alias="validationCode")
    """Only in the event that validates a subscription."""


class _Webhook(_Change):
    action: body.Text


class _Event(body.Part):
    type: body.Text = Field(validation_alias=AliasChoices("eventType", "type"))
    id: body.Text | None = None
    data: _Change | None = None


class _Events(body.Part):
    """An array (Event Grid's own schema, or a batch), or one event (CloudEvents)."""

    events: body.Items[_Event]

    @model_validator(mode="before")
    @classmethod
    def _of_either(cls, sent: object) -> object:
        return {"events": sent if isinstance(sent, list) else [sent]}


def _pushes(change: _Change) -> tuple[Push, ...]:
    if change.action != "push" or change.target is None:
        return ()
    host = change.request.host if change.request is not None else None
    return pushes.tagged(host, change.target.repository, change.target.tag)


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    change = body.read(_Webhook, delivery)
    if change.action == "ping":
        return Parsed(id=change.id or "", answer=Answer(200))
    return Parsed(_pushes(change), change.id or "")


def parse_events(delivery: Delivery, _: Receiver) -> Parsed:
    if delivery.method == "OPTIONS":
        return Parsed(answer=_allow(delivery))
    events = body.read(_Events, delivery).events
    if _is_validation(events):
        return Parsed(answer=_echo(events[0]))
    pushed = tuple(
        push
        for event in events
        if event.type == _PUSHED and event.data is not None
        for push in _pushes(event.data)
    )
    # A batch has no id of its own.
    return Parsed(pushed, events[0].id or "" if len(events) == 1 else "")


def _is_validation(events: list[_Event]) -> bool:
    return len(events) == 1 and events[0].type == _VALIDATION


def _allow(delivery: Delivery) -> Answer:
    """The handshake of CloudEvents (HTTP webhooks 1.0, section 4)."""
    origin = delivery.headers.get("webhook-request-origin", "")
    if not _ORIGIN.fullmatch(origin):
        raise Malformed("WebHook-Request-Origin: not a host")
    headers = {"Allow": "POST", "WebHook-Allowed-Origin": origin, "WebHook-Allowed-Rate": "*"}
    return Answer(200, headers=headers)


def _echo(event: _Event) -> Answer:
    """The handshake of Event Grid's own schema: the answer repeats the code, which proves that the
    receiver consents to the subscription.
    """
    code = event.data.code if event.data is not None else None
    if code is None or not _CODE.fullmatch(code):
        raise Malformed("data.validationCode: not a code")
    said = json.dumps({"validationResponse": code}).encode()
    return Answer(200, said, {"Content-Type": "application/json"})


async def by_token_or_header(delivery: Delivery, receiver: Receiver, fetch: Fetch) -> None:
    # A handshake is accepted without proof, because it names no image: it only proves the receiver
    # to the sender. It may lack the credentials that the subscription sends with its events.
    if delivery.method == "OPTIONS":
        return
    try:
        if receiver.token is not None:
            rule = receiver.token
            rule = replace(rule, application=rule.application or EVENT_GRID_APPLICATION)
            await bearer.verify(delivery, rule, KEYS_URL, fetch)
        else:
            verify.by_header(delivery, receiver, "authorization")
    except Unverified:
        if not _is_handshake(delivery):
            raise


def _is_handshake(delivery: Delivery) -> bool:
    """Whether an unverified delivery needs the answer of `_echo`. Large deliveries are not
    parsed.
    """
    if len(delivery.body) > _HANDSHAKE_BYTES:
        return False
    try:
        return _is_validation(body.read(_Events, delivery).events)
    except Malformed:
        return False


SOURCE = Source("acr", parse, verify.authorization)
EVENT_GRID = Source(
    "acr-eventgrid",
    parse_events,
    by_token_or_header,
    proofs=frozenset({"secrets", "token"}),
    max_body=1 << 20,  # Batches.
)
