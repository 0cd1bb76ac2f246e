"""Credentials from plugins, requested on demand and cached as long as the plugins allow.

As in k8s.io/kubernetes v1.36 pkg/credentialprovider/plugin/plugins.go, every provider whose
`matchImages` match is asked. The answers become one keyring. For the same registry, the provider
that is first in the file has priority.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imagegate.registry import plugin
from imagegate.registry.cache import Cache
from imagegate.registry.keychain import Keyring
from imagegate.registry.limits import Timing
from imagegate.registry.plugin import CacheKeyType, PluginFailed
from imagegate.registry.provider_config import Provider
from imagegate.registry.pull_secrets import Credential

logger = logging.getLogger(__name__)

KEPT = 1024
"""Largest number of answers in the cache."""
AT_ONCE = 4
"""Plugins that may run concurrently. Their memory counts towards the operator's limit."""
_GLOBAL = "<global>"

_Entries = Mapping[str, Credential]


@dataclass(frozen=True, slots=True)
class Found:
    credentials: tuple[Credential, ...] = ()
    """In the order of their use."""
    problems: tuple[str, ...] = ()
    """Errors of the providers that failed, for a message."""


@dataclass(frozen=True, slots=True)
class _Kept:
    entries: _Entries = field(repr=False)
    until: float


class Providers:
    """For any number of tasks. As in the kubelet, the failure of a plugin alone is not an error."""

    def __init__(self, providers: Sequence[Provider], timing: Timing) -> None:
        self._providers = providers
        self._timing = timing
        self._kept: Cache[tuple[str, str], _Kept] = Cache(KEPT)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._running: dict[tuple[str, str], asyncio.Task[_Entries]] = {}

    async def close(self) -> None:
        """End all running plugins."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def lookup(self, image: str) -> Found:
        """The credentials for a repository, `domain/path` without tag and digest."""
        answers: list[_Entries] = []
        problems: list[str] = []
        for provider in self._providers:
            if not provider.matches(image):
                continue
            try:
                answers.append(await self._entries(provider, image))
            except PluginFailed as failed:
                problems.append(f"credential provider {provider.name}: {failed}")
        keyring = Keyring.of_entries(answers)
        return Found(keyring.lookup_name(image) if answers else (), tuple(problems))

    async def _entries(self, provider: Provider, image: str) -> _Entries:
        """From the cache, or from one run that all concurrent callers for the image share."""
        known = self._known(provider, image)
        if known is not None:
            return known
        key = provider.name, image
        task = self._running.get(key)
        if task is None:
            # A separate task, because a caller may be cancelled before a slow cloud answers. The
            # run continues, and its answer is cached for the next call.
            task = asyncio.create_task(self._run(provider, image), name=f"plugin {provider.name}")
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: tuple[str, str], task: asyncio.Task[_Entries]) -> None:
        del self._running[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning(
                "credential provider failed",
                extra={"provider": key[0], "image": key[1], "error": str(error)},
            )

    async def _run(self, provider: Provider, image: str) -> _Entries:
        # One run at a time per registry, because an answer is usually valid for all its images.
        async with self._kept.turn((provider.name, _registry(image))):
            known = self._known(provider, image)
            if known is not None:
                return known
            async with self._slots:
                response = await plugin.run(provider, image)
            seconds = provider.cache_seconds if response.seconds is None else response.seconds
            match response.key_type:
                case CacheKeyType.IMAGE:
                    place = image
                case CacheKeyType.REGISTRY:
                    place = _registry(image)
                case CacheKeyType.GLOBAL:
                    place = _GLOBAL
            if seconds > 0:
                until = self._timing.monotonic() + seconds
                self._kept.put((provider.name, place), _Kept(response.entries, until))
            return response.entries

    def _known(self, provider: Provider, image: str) -> _Entries | None:
        now = self._timing.monotonic()
        for place in (image, _registry(image), _GLOBAL):
            kept = self._kept.get((provider.name, place))
            if kept is not None and now < kept.until:
                return kept.entries
        return None


def _registry(image: str) -> str:
    return image.partition("/")[0]
