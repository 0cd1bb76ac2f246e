"""``imagegate lint`` shows what makes images slow to pull. It asks only registries, no cluster.

Credentials come from a docker configuration file, parsed as the kubelet parses a pull secret.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagegate import tables
from imagegate.api import references
from imagegate.api.references import Reference
from imagegate.domain import advice, disk, forecast
from imagegate.domain.advice import Advice, NodeKind
from imagegate.domain.facts import ImageFacts, ImageSize
from imagegate.domain.forecast import Rates
from imagegate.domain.thresholds import Severity
from imagegate.errors import ImagegateError
from imagegate.registry.client import Client
from imagegate.registry.errors import InvalidSecret, RegistryError, Unauthorized
from imagegate.registry.keychain import Keyring
from imagegate.registry.manifests import Manifests
from imagegate.registry.pull_secrets import CONFIG_KEY, CONFIG_TYPE, PullSecret
from imagegate.runtime import image_facts

PATIENCE = 30.0
"""Longest wait for a registry, in seconds."""
MAX_PLATFORMS = 32
"""Largest number of platforms per image without --platform: an index may name any number."""
UNBOUND = "linux/amd64"
"""Platform for which an artifact is checked, because an artifact has no platform of its own."""


class InvalidDockerConfig(ImagegateError):
    """The docker configuration file cannot be read."""


@dataclass(frozen=True, slots=True)
class Linted:
    image: str
    facts: ImageFacts
    platforms: tuple[str, ...]
    advice: Mapping[Advice, tuple[str, ...]]
    """Each advice with its platforms; errors first."""

    @property
    def failed(self) -> bool:
        """Whether the image has an error, or could not be checked."""
        errors = (each.severity is Severity.ERROR for each in self.advice)
        return bool(self.facts.problem) or any(errors)


def keyring(path: Path) -> Keyring:
    """The credentials of a docker configuration file. Raises `InvalidDockerConfig`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidDockerConfig(f"{path}: {error.strerror}") from error
    try:
        secret = PullSecret(str(path.parent), path.name, CONFIG_TYPE, {CONFIG_KEY: data})
        return Keyring([secret])
    except InvalidSecret as error:
        # Only the problem, because the whole text is about a Kubernetes Secret. Without a cause,
        # because of secrets (`registry.errors`).
        problem = error.problem.removeprefix(f"{CONFIG_KEY}: ")
    raise InvalidDockerConfig(f"{path}: {problem}")


async def lint(
    images: Sequence[str],
    platforms: Sequence[str],
    client: Client,
    keys: Keyring,
    *,
    disk_size: int = advice.DISK,
) -> list[Linted]:
    """Check each image for these platforms, or for all platforms of the image.

    Raises `InvalidReference`; the facts' ``problem`` has other errors.
    """
    manifests = Manifests(client)
    return list(
        await asyncio.gather(
            *(_lint(image, platforms, client, manifests, keys, disk_size) for image in images)
        )
    )


async def _lint(
    image: str,
    platforms: Sequence[str],
    client: Client,
    manifests: Manifests,
    keys: Keyring,
    disk_size: int,
) -> Linted:
    wanted = tuple(platforms)
    reference = references.parse(image)
    try:
        async with asyncio.timeout(PATIENCE):
            # Resolve the tag only once, because it may move between two requests.
            digest = await client.resolve(reference, keys)
            pinned = replace(reference, digest=digest)
            own = await manifests.platforms(pinned, keys)
            wanted = wanted or tuple(str(each) for each in own[:MAX_PLATFORMS]) or (UNBOUND,)
            facts = await image_facts.describe(manifests, pinned, wanted, keys)
            facts = replace(facts, digest=digest)
    except Unauthorized as error:
        facts = ImageFacts(problem=f"{error.where}: {error.problem}; {_login(reference, keys)}")
    except RegistryError as error:
        facts = ImageFacts(problem=str(error))
    except TimeoutError:
        facts = ImageFacts(problem=f"the registry did not answer within {PATIENCE:g} s")
    found: dict[Advice, tuple[str, ...]] = {}
    for platform in wanted:
        for each in advice.advise(image, facts, NodeKind(platform, disk_size)):
            found[each] = (*found.get(each, ()), platform)
    ordered = sorted(found.items(), key=lambda item: item[0].severity is not Severity.ERROR)
    return Linted(image, facts, wanted, dict(ordered))


def _login(reference: Reference, keys: Keyring) -> str:
    """The remedy for a refusal. Unlike the operator, the command line has no `imagePullSecrets`."""
    files = [each.source for each in keys.lookup(reference) if not each.anonymous]
    if files:
        return f"check the user's rights, and the login in {files[0]}"
    return (
        "log in with `docker login`, or name a file with --docker-config; a credential helper"
        " (credsStore, credHelpers) is not asked"
    )


def as_json(linted: Iterable[Linted]) -> str:
    """The results as JSON, in bytes and seconds."""
    return json.dumps(
        [
            {
                "image": each.image,
                "digest": each.facts.digest or None,
                "problem": each.facts.problem or None,
                "platforms": [
                    {
                        "platform": platform,
                        "compressedBytes": size.compressed,
                        "layers": len(size.layers),
                        "largestLayerBytes": size.largest_layer,
                        "estimatedPullSeconds": round(advice.seconds(size, Rates()), 1),
                        "estimatedDiskBytes": disk.need([size]),
                    }
                    for platform, size in each.facts.sizes.items()
                ],
                "advice": [
                    {
                        "rule": said.rule,
                        "severity": said.severity,
                        "platforms": platforms,
                        "why": said.why,
                        "remedy": said.remedy,
                    }
                    for said, platforms in each.advice.items()
                ],
            }
            for each in linted
        ],
        indent=2,
    )


def table(linted: Sequence[Linted]) -> str:
    rows: list[tuple[str, ...]] = [
        ("IMAGE", "PLATFORM", "COMPRESSED", "LAYERS", "LARGEST", "PULL", "ON DISK")
    ]
    for each in linted:
        rows += (_row(each.image, *item) for item in each.facts.sizes.items())
    lines: list[str] = []
    if len(rows) > 1:
        rates = Rates()
        lines += tables.aligned(rows)
        lines.append(
            "PULL and ON DISK are estimates: an idle node that receives"
            f" {rates.node / 1e6:g} MB/s and unpacks {rates.unpack / 1e6:g} MB/s of gzip."
        )
    for each in linted:
        lines += ["", each.image, *_said(each)]
    # Platforms and messages come from the registry, and could contain escape sequences for the
    # terminal.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines).strip()


def _row(image: str, platform: str, size: ImageSize) -> tuple[str, ...]:
    return (
        image,
        platform,
        disk.size(size.compressed),
        str(len(size.layers)),
        disk.size(size.largest_layer),
        forecast.duration(advice.seconds(size, Rates())),
        disk.size(disk.need([size])),
    )


def _said(linted: Linted) -> list[str]:
    lines = [f"  ERROR: {linted.facts.problem}"] if linted.facts.problem else []
    for said, platforms in linted.advice.items():
        of = "" if platforms == linted.platforms else f" ({', '.join(platforms)})"
        lines += [
            f"  {said.severity.upper()} {said.rule}{of}: {said.why}",
            f"    {said.remedy}",
        ]
    return lines or ["  nothing to improve"]
