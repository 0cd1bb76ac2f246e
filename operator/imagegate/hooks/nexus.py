"""Sonatype Nexus Repository 3: the capability "Webhook: Repository", for components.

https://help.sonatype.com/en/example-headers-and-payloads.html
"""

from __future__ import annotations

from pydantic import Field

from imagegate.hooks import body, pushes, verify
from imagegate.hooks.event import Delivery, Fetch, Parsed, Receiver, Source


class _Component(body.Part):
    format: body.Text | None = None
    name: body.Text | None = None
    version: body.Text | None = None
    """The tag."""


class _Event(body.Part):
    repository: body.Text = Field(alias="repositoryName")
    action: body.Text
    component: _Component | None = None
    """Absent in events of assets, which are ignored: events of components have all their data."""


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    event = body.read(_Event, delivery)
    component = event.component
    name = delivery.headers.get("x-nexus-webhook-delivery", "")
    if event.action not in {"CREATED", "UPDATED"} or component is None:
        return Parsed(id=name)
    if component.format != "docker":
        return Parsed(id=name)
    return Parsed(pushes.hosted(None, event.repository, component.name, component.version), name)


async def by_signature(delivery: Delivery, receiver: Receiver, _: Fetch) -> None:
    verify.by_hmac(delivery, receiver, "x-nexus-webhook-signature", "sha1")


SOURCE = Source("nexus", parse, by_signature, says_registry=False, signs=True)
