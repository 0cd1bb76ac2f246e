"""Docker Hub. Its deliveries have no proof: neither a secret nor a signature.

The ``callback_url`` of a delivery is never requested, because a forger could choose it.
"""

from __future__ import annotations

from imagegate.api.references import DEFAULT_DOMAIN
from imagegate.hooks import body, verify
from imagegate.hooks.event import Delivery, Parsed, Push, Receiver, Source


class _Pushed(body.Part):
    tag: body.Text | None = None


class _Repository(body.Part):
    repo_name: body.Text


class _Notification(body.Part):
    push_data: _Pushed
    repository: _Repository


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    event = body.read(_Notification, delivery)
    push = Push(event.repository.repo_name, event.push_data.tag or "", DEFAULT_DOMAIN)
    return Parsed((push,))


SOURCE = Source("dockerhub", parse, verify.by_path, proofs=frozenset(), max_body=256 << 10)
