"""Docker Distribution (``registry:2`` and ``:3``), and registries that embed it, such as GitLab's.

An envelope may hold many events, also about blobs and pulls; in practice each event has its own
envelope. The registry repeats an event until the answer is 2xx or 3xx, and all later events wait
for this one (notifications/sinks.go).
"""

from __future__ import annotations

from imagegate.hooks import body, verify
from imagegate.hooks.event import Delivery, Parsed, Push, Receiver, Source


class _Target(body.Part):
    repository: body.Text | None = None
    tag: body.Text | None = None


class _Request(body.Part):
    host: body.Text | None = None


class _Event(body.Part):
    id: body.Text | None = None
    action: body.Text | None = None
    target: _Target | None = None
    request: _Request | None = None


class _Envelope(body.Part):
    events: body.Items[_Event]


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    events = body.read(_Envelope, delivery).events
    pushes = tuple(
        Push(
            event.target.repository,
            event.target.tag or "",
            (event.request.host if event.request else None) or "",
        )
        for event in events
        if event.action == "push"
        and event.target is not None
        and event.target.repository
        and body.moves(event.target.tag)
    )
    return Parsed(pushes, id=" ".join(event.id or "" for event in events).strip())


SOURCE = Source("distribution", parse, verify.authorization, max_body=256 << 10)
