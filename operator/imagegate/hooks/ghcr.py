"""GitHub's container registry: events ``package`` and ``registry_package`` of a webhook.

Both report the same push. Webhooks of repositories and organisations send the first, webhooks of
GitHub Apps the second.
"""

from __future__ import annotations

from imagegate.hooks import body, verify
from imagegate.hooks.event import Delivery, Fetch, Malformed, Parsed, Receiver, Source

_PUSHED = {"published", "updated", "create", "created"}
_CONTAINERS = {"container", "docker"}


class _Tag(body.Part):
    name: body.Text | None = None


class _Container(body.Part):
    tag: _Tag | None = None


class _Version(body.Part):
    package_url: body.Text | None = None
    """``ghcr.io/owner/name:tag``. Without a tag the colon is still there."""
    container_metadata: _Container | None = None


class _Package(body.Part):
    name: body.Text
    namespace: body.Text | None = None
    package_type: body.Text | None = None
    ecosystem: body.Text | None = None
    package_version: _Version | None = None


class _Event(body.Part):
    action: body.Text | None = None
    package: _Package | None = None
    registry_package: _Package | None = None


async def by_signature(delivery: Delivery, receiver: Receiver, _: Fetch) -> None:
    verify.by_hmac(delivery, receiver, "x-hub-signature-256", "sha256", "sha256=")


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    if delivery.headers.get("x-github-event") not in ("package", "registry_package"):
        return Parsed()  # Such as the ping when a webhook is created.
    if "form-urlencoded" in delivery.headers.get("content-type", ""):
        raise Malformed("choose the content type application/json for the webhook")
    event = body.read(_Event, delivery)
    package = event.package or event.registry_package
    if event.action not in _PUSHED or package is None or package.package_version is None:
        return Parsed()
    if (package.package_type or package.ecosystem or "").lower() not in _CONTAINERS:
        return Parsed()
    version = package.package_version
    url = version.package_url or f"ghcr.io/{package.namespace or ''}/{package.name}"
    folder, slash, last = url.rpartition("/")
    name, _colon, tag = last.partition(":")
    image = body.reference(f"{folder}{slash}{name}".lower(), "package_url")
    metadata = version.container_metadata
    if metadata is not None and metadata.tag is not None:
        tag = metadata.tag.name or ""
    if not body.moves(tag):
        return Parsed()
    return Parsed((body.named(image, tag),), id=delivery.headers.get("x-github-delivery", ""))


SOURCE = Source("ghcr", parse, by_signature, signs=True, max_body=256 << 10)
