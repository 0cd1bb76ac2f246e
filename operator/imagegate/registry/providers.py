"""Credentials from plugins, asked for when they are needed and kept as long as they say.

As k8s.io/kubernetes v1.36 pkg/credentialprovider/plugin/plugins.go: every provider whose
`matchImages` match is asked; what they say is one keyring, in which of one place the provider that
comes first in the file goes first.
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
"""Answers in memory."""
AT_ONCE = 4
"""Plugins that run at the same time: their memory counts as the operator's."""
_GLOBAL = "<global>"

_Entries = Mapping[str, Credential]


@dataclass(frozen=True, slots=True)
class Found:
    credentials: tuple[Credential, ...] = ()
    """To be tried in this order."""
    problems: tuple[str, ...] = ()
    """What kept a provider from giving any, for a message."""


@dataclass(frozen=True, slots=True)
class _Kept:
    entries: _Entries = field(repr=False)
    until: float


class Providers:
    """For any number of tasks. A plugin that fails is no error by itself, as with the kubelet."""

    def __init__(self, providers: Sequence[Provider], timing: Timing) -> None:
        self._providers = providers
        self._timing = timing
        self._kept: Cache[tuple[str, str], _Kept] = Cache(KEPT)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._running: dict[tuple[str, str], asyncio.Task[_Entries]] = {}

    async def close(self) -> None:
        """End what runs."""
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
        """From memory, or from a run that is shared by all who ask for the image meanwhile."""
        known = self._known(provider, image)
        if known is not None:
            return known
        key = provider.name, image
        task = self._running.get(key)
        if task is None:
            # A task of its own: whoever asks may be cancelled sooner than a slow cloud answers, and
            # would else never get what the run could have left in memory.
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
        # One at a time for a registry: the answer for one image is mostly one for all of them.
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
