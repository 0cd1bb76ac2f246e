"""JFrog Artifactory's predefined webhook, for "Docker: tag was pushed".

https://jfrog.com/help/r/jfrog-platform-administration-documentation/domain-docker
"""

from __future__ import annotations

from urllib.parse import urlsplit

from imagegate.hooks import body, pushes, verify
from imagegate.hooks.event import Delivery, Fetch, Malformed, Parsed, Receiver, Source, Unverified

_HEADER = "x-jfrog-event-auth"


class _Data(body.Part):
    repo_key: body.Text | None = None
    path: body.Text | None = None
    image_name: body.Text | None = None
    tag: body.Text | None = None


class _Event(body.Part):
    domain: body.Text
    event_type: body.Text
    data: _Data
    jpd_origin: body.Text | None = None


def parse(delivery: Delivery, receiver: Receiver) -> Parsed:
    event = body.read(_Event, delivery)
    data = event.data
    if (event.domain, event.event_type) != ("docker", "pushed"):
        return Parsed()
    if data.repo_key is None:
        raise Malformed("data.repo_key: missing")
    # Artifactory's address inside a cluster may not be valid in an image reference.
    server = "" if receiver.registry else _host(event.jpd_origin or "")
    return Parsed(pushes.hosted(server, data.repo_key, _image(data), data.tag))


def _image(data: _Data) -> str | None:
    """The image's name, from the path of the manifest's file: ``team/app/1.2/manifest.json``.

    The path has the whole name; ``image_name`` may lack the folders above the image.
    """
    name, slash, _ = (data.path or "").rpartition(f"/{data.tag}/")
    return name if slash else data.image_name


def _host(origin: str) -> str:
    """Artifactory's host, which is also the host of registries that have no host of their own."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        raise Malformed("jpd_origin: not a URL") from None


async def by_secret(delivery: Delivery, receiver: Receiver, _: Fetch) -> None:
    """The header holds the body's HMAC ("use secret for payload signing"), or the secret."""
    try:
        verify.by_hmac(delivery, receiver, _HEADER, "sha256")
    except Unverified:
        verify.by_header(delivery, receiver, _HEADER)


SOURCE = Source("jfrog", parse, by_secret, signs=True)
