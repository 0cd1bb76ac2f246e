"""Asks the registries of an ImagePrefetch about its images, with each image's credentials.

A registry that did not answer in time is remembered as slow, so that it does not occupy the workers
that others need.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Collection, Iterator, Sequence
from dataclasses import replace

from imagegate.api import references
from imagegate.api.references import Reference
from imagegate.domain.facts import Image, ImageFacts, Prefetch
from imagegate.errors import ImagegateError
from imagegate.kube.secrets import Secrets
from imagegate.registry.errors import Unavailable
from imagegate.registry.keychain import Keyring
from imagegate.registry.manifests import Manifests
from imagegate.registry.pull_secrets import PullSecret
from imagegate.runtime.image_facts import describe, lean

SLOW_WORKERS = 2
"""How many ImagePrefetches may ask the same slow registry at the same time."""
MOST_SLOW = 1000
"""Registries that are remembered as slow."""


class Registries:
    def __init__(self, manifests: Manifests, secrets: Secrets) -> None:
        self._manifests = manifests
        self._secrets = secrets
        self._slow: dict[str, int] = {}
        """Registries that did not answer the last time, with the number of rounds that ask now."""

    async def ask(
        self,
        prefetch: Prefetch,
        platforms: Sequence[str],
        patience: float,
        only: Collection[str] | None = None,
        *,
        resolved: bool = False,
    ) -> dict[str, ImageFacts]:
        """Ask about each image, or about ``only`` these, for at most ``patience`` seconds. Never
        raises: an error is returned in ``problem``. ``resolved``: the images' tags have just been
        looked up, and are not looked up again.
        """
        tasks = {
            image.reference: asyncio.create_task(
                self._describe(prefetch, image, platforms, resolved=resolved)
            )
            for image in prefetch.images
            if only is None or image.reference in only
        }
        if not tasks:
            return {}
        try:
            await asyncio.wait(tasks.values(), timeout=patience)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        self._judge(
            [ref for ref, task in tasks.items() if not task.cancelled() and task.result().digest],
            [ref for ref, task in tasks.items() if task.cancelled()],
        )
        late = ImageFacts(problem=f"the registry did not answer within {patience:.3g} s")
        return {ref: late if t.cancelled() else t.result() for ref, t in tasks.items()}

    async def _describe(
        self, prefetch: Prefetch, image: Image, platforms: Sequence[str], *, resolved: bool
    ) -> ImageFacts:
        try:
            bodies = await self._secrets.get(prefetch.namespace, image.pull_secrets)
            keyring = Keyring(PullSecret.from_object(body) for body in bodies)
            reference = references.parse(image.reference)
            if resolved and image.digest:
                reference = replace(reference, digest=image.digest)
        except ImagegateError as error:
            return ImageFacts(problem=str(error))
        return lean(await describe(self._manifests, reference, platforms, keyring))

    async def tags(
        self, namespace: str, repository: str, secrets: Sequence[str], patience: float
    ) -> tuple[str, ...]:
        """All tags of a repository, with the pull secrets of this namespace. Raises ImagegateError,
        also if there is no answer within ``patience`` seconds.
        """
        bodies = await self._secrets.get(namespace, secrets)
        keyring = Keyring(PullSecret.from_object(body) for body in bodies)
        reference = references.parse(repository)
        return await within(reference, patience, self._manifests.tags(reference, keyring))

    def slow(self, prefetch: Prefetch) -> set[str]:
        """The registries of a prefetch that did not answer the last time."""
        if not self._slow:
            return set()
        return {_domain(image.reference) for image in prefetch.images} & self._slow.keys()

    def busy(self, slow: Collection[str]) -> list[str]:
        """The slow registries that `SLOW_WORKERS` rounds ask now."""
        return [each for each in slow if self._slow[each] >= SLOW_WORKERS]

    @contextlib.contextmanager
    def asking(self, slow: Collection[str]) -> Iterator[None]:
        for each in slow:
            self._slow[each] += 1
        try:
            yield
        finally:
            for each in slow:
                # A registry that has answered meanwhile is not slow any more.
                if self._slow.get(each):
                    self._slow[each] -= 1

    def _judge(self, answered: Collection[str], late: Collection[str]) -> None:
        """Remember which registries did not answer in time; one answer is enough to forget it."""
        for domain in {_domain(reference) for reference in answered}:
            self._slow.pop(domain, None)
        for domain in {_domain(reference) for reference in late}:
            if domain not in self._slow and len(self._slow) < MOST_SLOW:
                self._slow[domain] = 0


async def within(
    reference: Reference, patience: float, tags: Awaitable[tuple[str, ...]]
) -> tuple[str, ...]:
    """The tags of a repository. Raises Unavailable after ``patience`` seconds."""
    try:
        async with asyncio.timeout(patience):
            return await tags
    except TimeoutError:
        raise Unavailable(
            reference.domain,
            f"it did not list all tags of {reference.path} within {patience:.3g} s",
            "it is asked again later",
        ) from None


@functools.lru_cache(maxsize=4096)
def _parsed(reference: str) -> Reference:
    """Parse an accepted reference. Cached, because each push event is compared with all images."""
    return references.parse(reference)


def _domain(reference: str) -> str:
    try:
        return _parsed(reference).domain
    except ImagegateError:
        return ""


def is_about(image: Image, registry: str, repository: str) -> bool:
    """Whether an event about a repository is about this image. Docker Hub's own images are called
    ``library/nginx`` by some and ``nginx`` by others.
    """
    reference = _parsed(image.reference)
    return reference.digest is None and is_repository(image.reference, registry, repository)


def is_repository(reference: str, registry: str, repository: str) -> bool:
    """Whether an event about a repository is about the repository of this reference. An empty
    ``registry`` is any.
    """
    own = _parsed(reference)
    if registry and own.domain != registry:
        return False
    return repository in {own.path, own.path.removeprefix("library/")}
