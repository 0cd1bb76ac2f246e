"""Every kind of sender, by the name that a receiver's ``source`` has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from imagegate.hooks import (
    acr,
    distribution,
    dockerhub,
    ecr,
    gar,
    generic,
    ghcr,
    harbor,
    jfrog,
    nexus,
    quay,
)
from imagegate.hooks.event import Source

SOURCES: Final[Mapping[str, Source]] = {
    source.name: source
    for source in (
        acr.SOURCE,
        acr.EVENT_GRID,
        distribution.SOURCE,
        dockerhub.SOURCE,
        ecr.SOURCE,
        ecr.SNS,
        gar.SOURCE,
        generic.SOURCE,
        ghcr.SOURCE,
        harbor.SOURCE,
        jfrog.SOURCE,
        nexus.SOURCE,
        quay.SOURCE,
    )
}
