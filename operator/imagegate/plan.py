"""``imagegate plan`` shows what an ImagePrefetch would do, as a table; it changes nothing.

In the operator's pod, it reads the disk usage of the nodes (``nodes/stats`` of the kubelets, with
tokens of a separate account). Elsewhere, it reports that the disk usage is not known, because a
user's token must not be sent to a kubelet.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from imagegate import tables
from imagegate.domain import disk, forecast, repositories, workloads
from imagegate.domain.effective import resolved
from imagegate.domain.facts import ImageFacts, Place, Prefetch, RepositorySpec
from imagegate.domain.forecast import Fleet, Forecast, Rates
from imagegate.domain.match import matches
from imagegate.domain.policy import ANYTHING, PrefetchPolicy, too_large
from imagegate.domain.repositories import Selected
from imagegate.domain.workloads import Found, Listing
from imagegate.errors import ImagegateError
from imagegate.kube.client import Client
from imagegate.kube.kubelets import Kubelets
from imagegate.kube.nodes import Nodes
from imagegate.kube.prefetches import Reader
from imagegate.kube.secrets import Secrets
from imagegate.kube.workloads import Workloads
from imagegate.registry import client as registry
from imagegate.registry.manifests import Manifests
from imagegate.runtime.clock import Clock
from imagegate.runtime.disks import Disks
from imagegate.runtime.registries import Registries
from imagegate.runtime.repositories import select

PATIENCE = 30.0
"""Longest wait for a registry, in seconds."""
SHOWN = 20
"""Largest number of nodes without enough disk space that the table names."""


class InvalidPlan(ImagegateError):
    """The input is not an ImagePrefetch that could be applied."""


@dataclass(frozen=True, slots=True)
class Plan:
    prefetch: Prefetch
    images: Mapping[str, ImageFacts]
    forecast: Forecast
    found: Found | None = None
    """The images of workloads; None without ``imagesFrom``."""
    selected: Selected | None = None
    """The tags of repositories; None without ``repositories``."""

    @property
    def hopeless(self) -> bool:
        """Whether no node that lacks the images has enough disk space for them."""
        return bool(self.forecast.no_room) and not self.forecast.to_pull


def load(
    filename: str, namespaces: Sequence[str] = (), policy: PrefetchPolicy = ANYTHING
) -> list[Prefetch]:
    """The ImagePrefetches of a file, or of standard input if ``filename`` is ``-``; see `read`."""
    if filename == "-":
        return read(sys.stdin.read(), "standard input", namespaces, policy)
    try:
        text = Path(filename).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise InvalidPlan(
            f"{filename}: it cannot be read: {why}: give the path of a file, or - for standard"
            " input"
        ) from error
    return read(text, filename, namespaces, policy)


def read(
    text: str, source: str, namespaces: Sequence[str] = (), policy: PrefetchPolicy = ANYTHING
) -> list[Prefetch]:
    """The ImagePrefetches of a YAML stream, with the defaults of the API server.

    ``namespaces``: the namespaces in which puller pods may run, the default first; empty: not
    known, so any namespace is accepted. Raises `InvalidPlan`.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidPlan(f"{source}: this is not YAML: {error}") from error
    found: list[Prefetch] = []
    for number, document in enumerate(documents, start=1):
        where = f"{source}, document {number}"
        if not isinstance(document, dict) or document.get("kind") != "ImagePrefetch":
            raise InvalidPlan(f"{where}: this is not an ImagePrefetch: remove it from the file")
        named = (document.get("spec") or {}).get("pullerNamespace")
        reader = Reader(namespaces or [named if isinstance(named, str) else "default"], policy)
        prefetch = reader.parse(document)
        if prefetch.invalid is not None:
            raise InvalidPlan(f"{where}: {prefetch.invalid[1]}")
        found.append(prefetch)
    if not found:
        raise InvalidPlan(f"{source}: there is no ImagePrefetch in it")
    return found


async def make(
    prefetches: Sequence[Prefetch],
    client: Client,
    registries: registry.Client,
    kubelets: Kubelets,
    rates: Rates,
    policy: PrefetchPolicy = ANYTHING,
) -> list[Plan]:
    """Read nodes and workloads from the API server, sizes from the registries, and disk usage from
    the kubelets. Raises a KubeError, also if the user may not list a kind of workloads, and
    `InvalidPlan` if the images are larger than the policy allows.
    """
    found = await _find(prefetches, client, policy)
    prefetches = [workloads.joined(p, each) for p, each in zip(prefetches, found, strict=True)]
    clock = Clock()
    asked = Registries(Manifests(registries), Secrets(client))
    tags = await asyncio.gather(*(_select(prefetch, asked, clock) for prefetch in prefetches))
    prefetches = [repositories.joined(p, each) for p, each in zip(prefetches, tags, strict=True)]
    prefetches = [await _resolved(prefetch, asked) for prefetch in prefetches]
    wanted = frozenset(image.listed_as for each in prefetches for image in each.images)
    nodes = await Nodes(client, lambda: wanted).list()
    disks = Disks(kubelets, clock)
    plans: list[Plan] = []
    for prefetch, each, selected in zip(prefetches, found, tags, strict=True):
        matching = [node for node in nodes if matches(prefetch, node)]
        platforms = sorted({node.platform for node in matching} - {""})
        images = await asked.ask(prefetch, platforms, PATIENCE, resolved=True)
        if why := too_large(prefetch, images, policy):
            raise InvalidPlan(f"{prefetch.name}: {why}")
        usages = await disks.survey(matching) if prefetch.max_usage < 100 else {}
        facts = forecast.forecast(prefetch, images, Fleet(nodes, usages), rates)
        plans.append(Plan(prefetch, images, facts, each, selected))
    return plans


async def _select(prefetch: Prefetch, registries: Registries, clock: Clock) -> Selected | None:
    """The current tags of the repositories of a prefetch."""

    def list_(spec: RepositorySpec) -> Awaitable[tuple[str, ...]]:
        return registries.tags(prefetch.namespace, spec.repository, spec.pull_secrets, PATIENCE)

    return await select(prefetch, list_, clock.now()) if prefetch.repositories else None


async def _resolved(prefetch: Prefetch, registries: Registries) -> Prefetch:
    """The prefetch with the current digests of its tags, if it follows tags."""
    if prefetch.refresh is None:
        return prefetch
    known = await registries.ask(prefetch, (), PATIENCE)
    return dataclasses.replace(prefetch, images=resolved(prefetch.images, known))


async def _find(
    prefetches: Sequence[Prefetch], client: Client, policy: PrefetchPolicy
) -> list[Found | None]:
    places = {source.place for prefetch in prefetches for source in prefetch.images_from}
    listings: dict[Place, Listing] = {}
    reader = Workloads(client)
    for place in sorted(places):
        listed, _ = await reader.list(place)
        listings[place] = Listing(listed.values(), read=True)
    return [
        workloads.find(prefetch, listings, policy) if prefetch.images_from else None
        for prefetch in prefetches
    ]


def as_json(plans: Iterable[Plan]) -> str:
    """The same figures as JSON, in bytes and seconds."""
    return json.dumps(
        [
            {
                "name": plan.prefetch.name,
                **(
                    {"repositories": repositories.entries(plan.selected, repositories.ANY_ROOM)}
                    if plan.selected is not None
                    else {}
                ),
                "images": [
                    {
                        "image": image.reference,
                        "from": image.source or None,
                        "compressedBytes": _compressed(plan, image.reference),
                        "problem": plan.images[image.reference].problem or None,
                    }
                    for image in plan.prefetch.images
                ],
                **_camel(dataclasses.asdict(plan.forecast)),
            }
            for plan in plans
        ],
        indent=2,
    )


def _camel(facts: dict[str, Any]) -> dict[str, Any]:
    named = {"no_room": "noRoom", "to_pull": "toPull", "bytes_all": "bytesAll"}
    named |= {"bytes_node": "bytesPerNode", "seconds_direct": "secondsWithoutMirror"}
    named |= {"seconds_mirrored": "secondsWithMirror", "unread": "disksNotRead"}
    facts = {named.get(key, key): value for key, value in facts.items() if key != "unknown"}
    for key in ("noRoom", "disksNotRead"):
        facts[key] = [{"node": node, "why": why} for node, why in facts[key]]
    return facts


def table(plans: Iterable[Plan]) -> str:
    return "\n\n".join(_one(plan) for plan in plans)


def _one(plan: Plan) -> str:
    facts, name = plan.forecast, plan.prefetch.name
    lines = [f"ImagePrefetch {name}", ""]
    rows = [("IMAGE", "COMPRESSED", "LARGEST LAYER", "ON DISK")]
    for image in plan.prefetch.images:
        known = plan.images[image.reference]
        if known.largest is None:
            rows.append((image.reference, "unknown", "", known.problem))
            continue
        rows.append(
            (
                image.reference,
                disk.size(known.largest.compressed),
                disk.size(known.largest.largest_layer),
                disk.size(disk.need([known.largest])),
            )
        )
    lines += tables.aligned(rows)
    if plan.found is not None:
        lines += ["", f"imagesFrom: {workloads.condition(plan.found)[2]}"]
    if plan.selected is not None:
        lines += ["", *(f"repositories: {text}" for text in repositories.texts(plan.selected))]
    skipped = ", ".join(f"{count} {why}" for why, count in sorted(facts.skipped.items()))
    full = f"beyond {plan.prefetch.max_usage} % of the disk"
    lines += ["", *tables.aligned(
        [
            ("NODES", "COUNT", ""),
            ("matched", str(facts.matched), ""),
            ("hold the images", str(facts.cached), ""),
            ("to pull", str(facts.to_pull), f"{disk.size(facts.bytes_all)} in all,"
             f" {disk.size(facts.bytes_node)} a node"),
            ("without room", str(len(facts.no_room)), full if facts.no_room else ""),
            ("skipped", str(sum(facts.skipped.values())), skipped),
            *(
                [("disk not read", str(len(facts.unread)), ": ".join(facts.unread[0]))]
                if facts.unread
                else []
            ),
        ]
    )]  # fmt: skip
    if facts.to_pull:
        lines += ["", *tables.aligned(
            [
                ("TIME (estimate)", ""),
                ("every node from the registry", forecast.duration(facts.seconds_direct)),
                ("with a mirror between nodes", forecast.duration(facts.seconds_mirrored)),
            ]
        )]  # fmt: skip
    if facts.no_room:
        rows2 = [("WITHOUT ROOM", "WHY"), *facts.no_room[:SHOWN]]
        lines += ["", *tables.aligned(rows2)]
        if len(facts.no_room) > SHOWN:
            lines.append(f"... and {len(facts.no_room) - SHOWN} more")
    return "\n".join(lines)


def _compressed(plan: Plan, reference: str) -> int | None:
    largest = plan.images[reference].largest
    return largest.compressed if largest is not None else None
