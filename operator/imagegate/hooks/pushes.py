"""Pushes from the fields of an event, with the names of image references."""

from __future__ import annotations

from imagegate.api import references
from imagegate.hooks import body
from imagegate.hooks.event import Malformed, Push

_SOMEWHERE = "registry.invalid"
"""Placeholder for a registry that only the receiver's configuration names."""


def tagged(registry: str | None, repository: str | None, tag: str | None) -> tuple[Push, ...]:
    """The push of a tag; none if there is no tag, or a digest instead of a tag.

    Without ``registry`` the receiver's registry is used later. Raises Malformed if the parts are
    not a valid image reference.
    """
    if tag is None or not body.moves(tag):
        return ()
    image = (registry or _SOMEWHERE, repository or "", tag)
    try:
        reference = references.parse("{}/{}:{}".format(*image))
    except references.InvalidReference:
        raise Malformed("the pushed name is not a valid image reference") from None
    if (reference.domain, reference.path, reference.tag) != image:
        raise Malformed("the pushed name is not a valid image reference")
    return (Push(image[1], tag, registry or ""),)


def hosted(server: str | None, holder: str, image: str | None, tag: str | None) -> tuple[Push, ...]:
    """The pushes of a tag to a server with many registries, such as Artifactory and Nexus.
    ``holder`` is the name of the registry on this server.

    The event does not show how images are named: with the holder in the path
    (``host/holder/app``), or under a host, port or path of the holder's own (``holder.host/app``).
    So both names are returned. A name that no prefetch uses causes no request. Raises Malformed.
    """
    own = tagged(server, image, tag)
    try:
        return tagged(server, f"{holder}/{image}", tag) + own
    except Malformed:
        return own  # A holder's name may be invalid in an image reference, such as upper case.
