"""Every kind of sender, by the name that a receiver's ``source`` has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from imagegate.hooks import distribution, dockerhub, generic, ghcr, harbor, quay
from imagegate.hooks.event import Source

SOURCES: Final[Mapping[str, Source]] = {
    source.name: source
    for source in (
        distribution.SOURCE,
        dockerhub.SOURCE,
        generic.SOURCE,
        ghcr.SOURCE,
        harbor.SOURCE,
        quay.SOURCE,
    )
}
