"""What an event says was pushed, as images name it."""

from __future__ import annotations

from imagegate.api import references
from imagegate.hooks import body
from imagegate.hooks.event import Malformed, Push

_SOMEWHERE = "registry.invalid"
"""In the place of a registry that only the receiver knows."""


def tagged(registry: str | None, repository: str | None, tag: str | None) -> tuple[Push, ...]:
    """The push of a tag; none where there is no tag, or a digest in its place.

    No registry: that of the receiver. Raises Malformed for what no image can be called.
    """
    if tag is None or not body.moves(tag):
        return ()
    image = (registry or _SOMEWHERE, repository or "", tag)
    try:
        reference = references.parse("{}/{}:{}".format(*image))
    except references.InvalidReference:
        raise Malformed("no image can be called what was pushed") from None
    if (reference.domain, reference.path, reference.tag) != image:
        raise Malformed("no image can be called what was pushed")
    return (Push(image[1], tag, registry or ""),)


def hosted(server: str | None, holder: str, image: str | None, tag: str | None) -> tuple[Push, ...]:
    """The push of a tag to a server that holds many registries, as Artifactory and Nexus do.

    Nothing in the event tells how images are named: behind the holder's name (``host/holder/app``),
    or under a host, port or path of the holder's own (``holder.host/app``). Both are asked about;
    the one that no prefetch names costs nothing. Raises Malformed.
    """
    own = tagged(server, image, tag)
    try:
        return tagged(server, f"{holder}/{image}", tag) + own
    except Malformed:
        return own  # A holder may be called what no part of an image can: with upper case, say.
