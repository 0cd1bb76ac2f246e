"""What the registries say of the images: asked once per spec, then now and then.

Nothing depends on the answers being there. They put small images before large ones, say how long a
pull may take and whether it fits the disk, and which nodes no image is there for. Where tags are
followed (``refresh``) they say what is to be rolled out; a registry that does not answer changes
nothing then.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from imagegate.api import references
from imagegate.api.references import Reference
from imagegate.domain.facts import Image, ImageFacts, ImageSize, LayerFacts, Prefetch, Refreshed
from imagegate.errors import ImagegateError
from imagegate.kube.secrets import Secrets
from imagegate.registry import manifests as registry
from imagegate.registry.errors import NoSuchPlatform
from imagegate.registry.keychain import Keyring
from imagegate.registry.manifests import Manifests
from imagegate.registry.platforms import Platform
from imagegate.registry.pull_secrets import PullSecret
from imagegate.runtime.clock import Clock
from imagegate.runtime.queue import KeyedQueue
from imagegate.runtime.store import Store

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that the first pull of a new spec waits for the registry at most."""
UNHURRIED = 30.0
"""Seconds that a registry gets when nobody waits for the answer."""
LATER = 60.0
"""Seconds until a registry that did not answer, or said no, is asked again; doubled each time."""
NOW_AND_THEN = 3600.0
"""Seconds until an answer is asked for again: a tag may have moved."""
SLOW_WORKERS = 2
"""ImagePrefetches at the same time whose registry did not answer the last time."""
SLOW_RETRY = 5.0
"""Seconds until an ImagePrefetch tries again to get one of those."""
MOST_SLOW = 1000
"""Registries that are remembered as slow."""
MOST_LAYERS = 128
"""Layers of an image that are kept one by one: Docker builds no more than 127. Of an image with
more, only the sums are kept."""
LAYERS_BUDGET = 8192
"""Layers that are kept one by one of all images of an ImagePrefetch, for all platforms."""

Known = Mapping[str, ImageFacts]
_Asked = tuple[str, tuple[tuple[str, tuple[str, ...]], ...], str]
"""What decides the answers: the prefetch's uid, its images with the names of their secrets, and the
namespace of those. Not the digests: they are the answers."""


class Inspector:
    def __init__(
        self,
        *,
        store: Store,
        manifests: Manifests,
        secrets: Secrets,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._store = store
        self._manifests = manifests
        self._secrets = secrets
        self.changed: Callable[[str], None] = _ignore
        """Who is told that something is known, or has changed; by the prefetch's name."""
        self.looked: Callable[[str], None] = _ignore
        """Who is told that tags were looked up, and that nothing has changed."""
        self._known: dict[str, tuple[_Asked, frozenset[str], Known]] = {}
        self._failures: dict[str, int] = {}
        self._refreshed: dict[str, Refreshed] = {}
        self._poked: dict[str, set[str]] = {}
        self._since: dict[str, tuple[_Asked, float]] = {}
        """When a spec was seen whose images are not known yet."""
        self._slow: dict[str, int] = {}
        """Registries that did not answer the last time, with how many rounds ask them now."""
        # First looks and pushes: a node or a rollout waits for them. The workers only wait for
        # registries; how much they hold in memory is bounded by the registry client.
        self.queue = KeyedQueue("image", self._inspect, workers=4, urgent_workers=16)

    def known(self, prefetch: Prefetch) -> Known | None:
        """What is known of the images of this very spec; None before the first round."""
        found = self._known.get(prefetch.name)
        return found[2] if found is not None and found[0] == _asked(prefetch) else None

    def refreshed(self, prefetch: str) -> Refreshed | None:
        """When its tags were looked up, and will be; None where they are not followed."""
        return self._refreshed.get(prefetch)

    def poke(self, registry: str, repository: str) -> int:
        """Somebody says that a tag was pushed: look up now what is followed of that repository.

        All of its tags, because a push may move several while its event names one (GitHub's with
        two tags, Harbor's copy), or none that is followed. An empty ``registry`` stands for any.
        Returns how many images of ImagePrefetches that concerns.
        """
        count = 0
        for prefetch in self._store.prefetches.values():
            if prefetch.refresh is None or prefetch.deleting or prefetch.invalid is not None:
                continue
            for image in prefetch.images:
                if _is_about(image, registry, repository):
                    self._poked.setdefault(prefetch.name, set()).add(image.reference)
                    count += 1
            if prefetch.name in self._poked:
                self.queue.add(prefetch.name, urgent=True)
        return count

    def look(self, prefetch: Prefetch) -> None:
        """Ask about these images unless that has been done; sooner than it was planned, where the
        spec wants that by now.
        """
        if self.known(prefetch) is None:
            self._failures.pop(prefetch.name, None)
            asked, before = _asked(prefetch), self._since.get(prefetch.name)
            if before is None or before[0] != asked:
                self._since[prefetch.name] = asked, self._clock.monotonic()
            self.queue.add(prefetch.name, urgent=True)
        elif prefetch.refresh is not None:
            last, now = self._refreshed.get(prefetch.name), self._clock.now()
            due = now if last is None else last.at + prefetch.refresh.interval
            self.queue.add(prefetch.name, delay=max(0.0, due - now))

    def meet(self, platform: str) -> None:
        """A node is there; a platform that was not asked about has to be."""
        for name, (_, platforms, _) in self._known.items():
            if platform and platform not in platforms:
                self.queue.add(name)

    def forget(self, prefetch: str) -> None:
        self._known.pop(prefetch, None)
        self._failures.pop(prefetch, None)
        self._refreshed.pop(prefetch, None)
        self._poked.pop(prefetch, None)
        self._since.pop(prefetch, None)

    async def _inspect(self, name: str) -> None:
        prefetch = self._store.prefetches.get(name)
        if prefetch is None or prefetch.deleting or prefetch.invalid is not None:
            self.forget(name)
            return
        platforms = frozenset(node.platform for node in self._store.nodes.values())
        before = self.known(prefetch)
        asked = _asked(prefetch)
        slow = self._slow_ones(prefetch)
        busy = [each for each in slow if self._slow[each] >= SLOW_WORKERS]
        if busy and before is not None:
            self.queue.add(name, delay=SLOW_RETRY)
            return
        poked = self._poked.pop(name, set())
        pushed = poked if poked and before is not None and not self._due(name) else None
        patience = UNHURRIED if before is not None else self._patience(name, asked)
        if busy or patience <= 0:
            answers = _unanswered(prefetch, busy)
        else:
            sought = sorted(filter(None, platforms))
            with self._asking(slow):
                answers = await self.ask(prefetch, sought, patience, pushed)
        now = self._store.prefetches.get(name)
        if now is None or now.deleting or now.uid != prefetch.uid:
            # It was deleted while the registry was asked, and forgotten; a new one of this name is
            # asked about on its own.
            if now is None or now.deleting:
                self.forget(name)
            return
        answers = _within_budget(_completed(before or {}, answers))
        self._known[name] = (asked, platforms, answers)
        if self._since.get(name, (None,))[0] == asked:
            del self._since[name]
        problems = [facts.problem for facts in answers.values() if facts.problem]
        last = self._refreshed.get(name)
        if pushed is None or last is None:
            # Without a plan for all images, the answers about the pushed ones are one, too.
            self._plan(prefetch, problems)
        else:
            self.queue.add(name, delay=max(0.01, last.due - self._clock.now()))
        if answers != before:
            self.changed(name)
        elif prefetch.refresh is not None:
            self.looked(name)

    def _patience(self, name: str, asked: _Asked) -> float:
        """Seconds that the first pull of a spec may still wait: they count from when the spec was
        seen, not from when a worker was free.
        """
        since = self._since.get(name)
        waited = self._clock.monotonic() - since[1] if since and since[0] == asked else 0.0
        return PATIENCE - waited

    def _slow_ones(self, prefetch: Prefetch) -> set[str]:
        """The registries of a prefetch that did not answer the last time."""
        if not self._slow:
            return set()
        return {_domain(image.reference) for image in prefetch.images} & self._slow.keys()

    @contextlib.contextmanager
    def _asking(self, slow: Collection[str]) -> Iterator[None]:
        for each in slow:
            self._slow[each] += 1
        try:
            yield
        finally:
            for each in slow:
                # One that has answered meanwhile is not slow any more.
                if self._slow.get(each):
                    self._slow[each] -= 1

    def _judge(self, answered: Collection[str], late: Collection[str]) -> None:
        """Remember which registries did not answer in time; one answer is enough to forget it."""
        for domain in {_domain(reference) for reference in answered}:
            self._slow.pop(domain, None)
        for domain in {_domain(reference) for reference in late}:
            if domain not in self._slow and len(self._slow) < MOST_SLOW:
                self._slow[domain] = 0

    def _due(self, name: str) -> bool:
        """Whether it is time for all images of a prefetch, rather than for a pushed one."""
        refreshed = self._refreshed.get(name)
        return refreshed is None or self._clock.now() >= refreshed.due

    def _plan(self, prefetch: Prefetch, problems: Sequence[str]) -> None:
        """When to ask again: later and later where there is a problem, but where tags are followed
        no later than it is said there.
        """
        name, now = prefetch.name, self._clock.now()
        count = self._failures[name] = self._failures.get(name, 0) + 1 if problems else 0
        usual = prefetch.refresh.interval if prefetch.refresh is not None else NOW_AND_THEN
        delay = min(usual, LATER * 2 ** min(count - 1, 10)) if count else usual
        self.queue.add(name, delay=delay)
        if prefetch.refresh is not None:
            problem = "; ".join(problems)
            self._refreshed[name] = Refreshed(now, now + delay, problem, count)
        else:
            self._refreshed.pop(name, None)
        if problems and count == 1:
            logger.info(
                "image not inspected", extra={"prefetch": name, "error": "; ".join(problems)}
            )

    async def ask(
        self,
        prefetch: Prefetch,
        platforms: Sequence[str],
        patience: float,
        only: Collection[str] | None = None,
        *,
        resolved: bool = False,
    ) -> dict[str, ImageFacts]:
        """What the registries say of each image, or of ``only`` these, within so many seconds.
        Never raises: what is wrong stands in ``problem``. ``resolved``: the images' tags have just
        been looked up, and are not again.
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
        return _lean(await describe(self._manifests, reference, platforms, keyring), MOST_LAYERS)


async def describe(
    manifests: Manifests, reference: Reference, platforms: Sequence[str], keyring: Keyring
) -> ImageFacts:
    """What a registry says of one image for nodes of these platforms. What is wrong stands in
    ``problem``.
    """
    facts = ImageFacts()
    try:
        # Once: the tag may move between two platforms, and every question is a request.
        digest = await manifests.resolve(reference, keyring)
        facts = ImageFacts(digest=digest)
        pinned = replace(reference, digest=digest)
        for platform in platforms:
            try:
                found = await manifests.describe(pinned, Platform.parse(platform), keyring)
            except NoSuchPlatform as error:
                facts = replace(facts, missing=facts.missing | {platform}, platforms=error.offered)
                continue
            facts = replace(
                facts,
                sizes={**facts.sizes, platform: _size(found)},
                platforms=tuple(str(each) for each in found.platforms),
            )
    except ImagegateError as error:
        return replace(facts, problem=str(error))
    return facts


def _lean(facts: ImageFacts, most: int) -> ImageFacts:
    """The facts, with only the sums of sizes that have more layers than ``most``."""
    if all(len(size.layers) <= most for size in facts.sizes.values()):
        return facts
    sizes = {
        platform: size if len(size.layers) <= most else replace(size, layers=())
        for platform, size in facts.sizes.items()
    }
    return replace(facts, sizes=sizes)


def _within_budget(answers: Mapping[str, ImageFacts]) -> dict[str, ImageFacts]:
    """The answers, with the layers of the first images as far as the budget goes."""
    left, kept = LAYERS_BUDGET, {}
    for reference, facts in answers.items():
        count = sum(len(size.layers) for size in facts.sizes.values())
        kept[reference] = facts if count <= left else _lean(facts, 0)
        left -= count if count <= left else 0
    return kept


def _unanswered(prefetch: Prefetch, busy: Collection[str]) -> dict[str, ImageFacts]:
    """What a spec begins with for which no registry could be asked in time."""
    which = f"{', '.join(sorted(busy)[:3])} has" if busy else "the registries have"
    facts = ImageFacts(problem=f"{which} too many questions open; it is asked again later")
    return {image.reference: facts for image in prefetch.images}


def _size(found: registry.ImageFacts) -> ImageSize:
    seen: set[str] = set()
    layers: list[LayerFacts] = []
    for layer in found.layers:
        size = 0 if layer.digest in seen else layer.size
        seen.add(layer.digest)
        layers.append(LayerFacts(size, str(layer.compression), _key(layer.digest)))
    largest = found.largest_layer
    return ImageSize(found.compressed_bytes, largest.size if largest else 0, tuple(layers))


def _key(digest: str) -> int:
    try:
        return int(digest.partition(":")[2][:16], 16)
    except ValueError:
        return 0


def _ignore(_: str) -> None:
    """Nobody wants to know."""


def _asked(prefetch: Prefetch) -> _Asked:
    images = tuple((image.reference, image.pull_secrets) for image in prefetch.images)
    return prefetch.uid, images, prefetch.namespace


@functools.lru_cache(maxsize=4096)
def _parsed(reference: str) -> Reference:
    """Of an image that was accepted. Every push event is compared with every image."""
    return references.parse(reference)


def _domain(reference: str) -> str:
    try:
        return _parsed(reference).domain
    except ImagegateError:
        return ""


def _is_about(image: Image, registry: str, repository: str) -> bool:
    """Whether an event about a repository is about this image. Docker Hub's own images are called
    ``library/nginx`` by some and ``nginx`` by others.
    """
    reference = _parsed(image.reference)
    if reference.digest is not None or (registry and reference.domain != registry):
        return False
    return repository in {reference.path, reference.path.removeprefix("library/")}


def _completed(before: Known, now: Known) -> Known:
    """What was known is better than a registry that is away just now."""
    return {**before, **{ref: _merged(before.get(ref), facts) for ref, facts in now.items()}}


def _merged(before: ImageFacts | None, now: ImageFacts) -> ImageFacts:
    if before is None or not now.problem:
        return now
    # The digest may be known although what is behind it is not: then it is what is rolled out.
    if now.digest and now.digest != before.digest:
        return now
    return replace(before, problem=now.problem)
