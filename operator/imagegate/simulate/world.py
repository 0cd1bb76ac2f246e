"""The world of a simulated rollout: its nodes, the image, the registry and the mirrors."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from imagegate.domain.forecast import ORDINARY, Rates
from imagegate.errors import ImagegateError

CONCURRENT_DOWNLOADS: Final = 3
"""Layers that a node fetches at a time: the default of containerd's max_concurrent_downloads."""
WORST_FAILURE_RATE: Final = 0.9
"""With a higher rate most of the simulated time would be back-off, and no rollout would end."""


class InvalidWorld(ImagegateError):
    """The facts contradict each other, or cannot be simulated."""


@dataclass(frozen=True, slots=True)
class World:
    nodes: int = 1000
    zones: int = 3
    layers: tuple[int, ...] = (875_000_000,) * 8
    """Compressed bytes of each layer, in the order in which they are unpacked."""
    rates: Rates = ORDINARY
    mirror: float | None = None
    """Bytes a second that the mirror in each zone sends to its nodes; None: there are no mirrors,
    and every node pulls from the registry."""
    latency: float = 2.0
    """Seconds of a pull before its first byte: the puller pod starts, the manifest is fetched."""
    spread: float = 0.35
    """How much nodes differ: the sigma of a lognormal factor of the latency and the unpacking."""
    failure_rate: float = 0.0
    """The share of attempts whose transfer breaks off."""
    registry_pulls: int | None = None
    """Pulls that the registry serves at once; it refuses more with 429. None: no limit."""
    seed: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.zones <= self.nodes:
            raise InvalidWorld(
                f"zones: {self.zones} zones for {self.nodes} nodes: give a number from 1 to the"
                " number of nodes"
            )
        if not self.layers or min(self.layers) < 1:
            raise InvalidWorld("layers: a layer has less than 1 byte: give fewer layers")
        if not 0 <= self.failure_rate <= WORST_FAILURE_RATE:
            raise InvalidWorld(
                f"failure rate: {self.failure_rate:g} is not from 0 to {WORST_FAILURE_RATE:g}:"
                " nearly every pull would fail, so the rollout would not end"
            )
        if self.registry_pulls is not None and self.registry_pulls < 1:
            raise InvalidWorld(f"registry pulls: {self.registry_pulls} is less than 1")

    @property
    def image(self) -> int:
        """The compressed bytes of the whole image."""
        return sum(self.layers)

    def names(self) -> list[str]:
        return [f"node-{number:06d}" for number in range(self.nodes)]

    def zone(self, number: int) -> str:
        """The zone of the node with this number."""
        return f"zone-{number % self.zones}"

    def slowness(self, node: str) -> float:
        """The factor of one node's latency and unpacking; its median is 1."""
        return math.exp(self.spread * self._random(node).gauss(0.0, 1.0))

    def breaks_at(self, node: str, attempt: int) -> tuple[int, int] | None:
        """Where the transfer of this attempt breaks off: the layer's number and its bytes until
        then. None: it does not. The same for every strategy, so that luck decides nothing.
        """
        if not self.failure_rate:
            return None
        chance = self._random(f"{node}/{attempt}")
        if chance.random() >= self.failure_rate:
            return None
        point = chance.random() * self.image
        for number, size in enumerate(self.layers):
            if point < size:
                return number, int(point)
            point -= size
        return len(self.layers) - 1, self.layers[-1]

    def _random(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}/{what}")  # noqa: S311


def cut(image: int, layers: int, largest: int | None = None) -> tuple[int, ...]:
    """An image of this size in layers of equal size. ``largest``: the last layer has this size, and
    the others share the remainder. Raises `InvalidWorld`.
    """
    if largest is None:
        whole, rest = divmod(image, layers)
        return tuple(whole + (number < rest) for number in range(layers))
    if layers == 1 and largest == image:
        return (image,)
    if layers == 1 or not image / layers <= largest < image:
        raise InvalidWorld(
            f"largest layer: {largest / 1e9:g} GB is not possible in {layers} layers of"
            f" {image / 1e9:g} GB together: give at least {image / layers / 1e9:.3g} GB and less"
            " than the whole image"
        )
    return (*cut(image - largest, layers - 1), largest)
