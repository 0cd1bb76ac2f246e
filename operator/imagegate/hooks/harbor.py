"""Harbor, in both of its payload formats: Default and CloudEvents."""

from __future__ import annotations

from imagegate.hooks import body, verify
from imagegate.hooks.event import Delivery, Parsed, Push, Receiver, Source

_PUSHED = {"PUSH_ARTIFACT", "harbor.artifact.pushed"}


class _Resource(body.Part):
    tag: body.Text | None = None
    resource_url: body.Text | None = None


class _Repository(body.Part):
    repo_full_name: body.Text


class _Data(body.Part):
    resources: body.Items[_Resource] | None = None
    repository: _Repository | None = None


class _Notification(body.Part):
    type: body.Text
    id: body.Text | None = None
    event_data: _Data | None = None
    """In the Default format."""
    data: _Data | None = None
    """In CloudEvents."""


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    event = body.read(_Notification, delivery)
    data = event.event_data or event.data
    if event.type not in _PUSHED or data is None or data.repository is None:
        return Parsed()
    pushes = tuple(
        Push(data.repository.repo_full_name, each.tag or "", _registry(each))
        for each in data.resources or ()
        if body.moves(each.tag)
    )
    return Parsed(pushes, id=event.id or "")


def _registry(resource: _Resource) -> str:
    if not resource.resource_url:
        return ""
    return body.reference(resource.resource_url, "resource_url").domain


SOURCE = Source("harbor", parse, verify.authorization)
