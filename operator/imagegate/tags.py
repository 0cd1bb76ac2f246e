"""``imagegate tags`` shows which tags ``spec.repositories`` of an ImagePrefetch chooses. It asks
only registries, no cluster, so that a policy can be tried before the ImagePrefetch is applied.

Credentials come from a docker configuration file, as for ``imagegate lint``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imagegate import tables
from imagegate.api import references
from imagegate.domain import repositories
from imagegate.domain.facts import Prefetch, RepositorySpec
from imagegate.domain.repositories import Selected
from imagegate.errors import ImagegateError
from imagegate.registry.client import Client
from imagegate.registry.keychain import Keyring
from imagegate.runtime.clock import Clock
from imagegate.runtime.registries import within
from imagegate.runtime.repositories import LIST_TIMEOUT, select


class NoRepositories(ImagegateError):
    """No ImagePrefetch of the input has ``spec.repositories``."""


@dataclass(frozen=True, slots=True)
class Choice:
    prefetch: str
    selected: Selected

    @property
    def failed(self) -> bool:
        """Whether a repository has no chosen tag, or could not be read."""
        return not repositories.condition(self.selected)[0] or self.selected.unread


async def choose(prefetches: Sequence[Prefetch], client: Client, keys: Keyring) -> list[Choice]:
    """Choose for each ImagePrefetch that has repositories. Raises NoRepositories; an error of a
    registry is in the result.
    """

    async def list_(spec: RepositorySpec) -> tuple[str, ...]:
        reference = references.parse(spec.repository)
        return await within(reference, LIST_TIMEOUT, client.tags(reference, keys))

    now = Clock().now()
    choices = [
        Choice(prefetch.name, await select(prefetch, list_, now))
        for prefetch in prefetches
        if prefetch.repositories
    ]
    if not choices:
        raise NoRepositories(
            "no ImagePrefetch has spec.repositories: add it, or use imagegate plan"
        )
    return choices


def as_json(choices: Iterable[Choice]) -> str:
    """The entries of ``status.repositories``, as JSON."""
    return json.dumps(
        [
            {
                "name": choice.prefetch,
                "repositories": repositories.entries(choice.selected, repositories.ANY_ROOM),
            }
            for choice in choices
        ],
        indent=2,
    )


def table(choices: Iterable[Choice]) -> str:
    lines: list[str] = []
    for choice in choices:
        images = [image.reference for each in choice.selected.chosen for image in each.images]
        lines += [f"ImagePrefetch {choice.prefetch}", ""]
        if images:
            lines += [*tables.aligned([("IMAGE",), *((image,) for image in images)]), ""]
        lines += [*repositories.texts(choice.selected), ""]
    # Tags and messages come from the registry, and could contain escape sequences for the terminal.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines).strip()
