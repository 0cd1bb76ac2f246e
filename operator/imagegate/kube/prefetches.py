"""Access to ImagePrefetches: reads them into facts, and writes the status and the finalizer."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from imagegate.api import decode, fields, kinds, meta, parallel, v1alpha1
from imagegate.domain.facts import (
    FINALIZER,
    POLICY_VIOLATION,
    DaemonSetRef,
    GateMode,
    GatePolicy,
    GateSpec,
    Image,
    ImageSource,
    OnReboot,
    Operator,
    Prefetch,
    RefreshSpec,
    RepositorySpec,
    Requirement,
    RetrySpec,
    RolloutSpec,
    TagOrder,
    TagPolicy,
)
from imagegate.domain.policy import ANYTHING, PrefetchPolicy, violation
from imagegate.kube.client import JSON_PATCH, MERGE_PATCH, Client
from imagegate.kube.errors import Conflict, NotFound

logger = logging.getLogger(__name__)

PATH = "/apis/imagegate.dev/v1alpha1/imageprefetches"


CACHED = 1000
"""Largest number of parsed specs in the cache."""


class Reader:
    """Parses ImagePrefetches. An unchanged spec is parsed only once, because every write of the
    status causes a watch event, and pydantic is slow.
    """

    def __init__(self, puller_namespaces: Sequence[str], policy: PrefetchPolicy = ANYTHING) -> None:
        """``puller_namespaces``: the allowed namespaces, the default first."""
        self._namespaces = tuple(puller_namespaces)
        self._policy = policy
        self._parsed: OrderedDict[str, tuple[object, dict[str, Any]]] = OrderedDict()
        """By uid: the spec as JSON, and its facts."""

    def parse(self, body: Mapping[str, Any]) -> Prefetch:
        """Never raises: ``invalid`` has the error and the remedy."""
        metadata: Mapping[str, Any] = body.get("metadata") or {}
        common: dict[str, Any] = {
            "name": metadata.get("name", ""),
            "uid": metadata.get("uid", ""),
            "version": fields.version(metadata),
            "generation": metadata.get("generation", 1),
            "created_at": fields.seconds(metadata.get("creationTimestamp")) or 0.0,
            "deleting": "deletionTimestamp" in metadata,
            "finalizers": tuple(metadata.get("finalizers") or ()),
            "status": dict(body.get("status") or {}),
        }
        return Prefetch(**common, **self._facts(common["uid"], body))

    def _facts(self, uid: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of the spec. They are shared, so they contain no mutable object like
        ``status``.
        """
        spec = body.get("spec")
        known = self._parsed.get(uid)
        if uid and known is not None and known[0] == spec:
            self._parsed.move_to_end(uid)
            return known[1]
        facts = self._parse(body)
        if uid:
            # A copy, because the watch may change the body.
            self._parsed[uid] = (copy.deepcopy(spec), facts)
            self._parsed.move_to_end(uid)
            if len(self._parsed) > CACHED:
                self._parsed.popitem(last=False)
        return facts

    def _parse(self, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            spec = decode.parse_prefetch(body).spec
        except decode.InvalidObject as error:
            return {"invalid": ("InvalidSpec", str(error))}
        invalid = None
        namespace = spec.puller_namespace or self._namespaces[0]
        facts = _spec(spec)
        forbidden = violation(Prefetch("", "", 0, **facts), self._policy)
        if forbidden is not None:
            invalid = (POLICY_VIOLATION, forbidden)
        elif namespace not in self._namespaces:
            allowed = ", ".join(sorted(self._namespaces))
            invalid = (
                "NamespaceNotAllowed",
                f"spec.pullerNamespace {namespace!r} is not one of the operator's"
                f" ({allowed}); use one of them, or add it to the chart's puller.namespaces",
            )
        return {"invalid": invalid, "namespace": namespace, **facts}


def _spec(spec: v1alpha1.ImagePrefetchSpec) -> dict[str, Any]:
    default = tuple(secret.name for secret in spec.image_pull_secrets)
    return {
        "images": tuple(
            Image(
                image.image,
                default
                if image.image_pull_secrets is None
                else tuple(secret.name for secret in image.image_pull_secrets),
                listed_as=image.reference.listed_as,
            )
            for image in spec.images
        ),
        "images_from": tuple(_image_source(source) for source in spec.images_from),
        "repositories": tuple(_repository(each, default) for each in spec.repositories),
        "list_interval": float(spec.refresh.interval_seconds),
        "pull_secrets": default,
        "selector": _selector(spec.node_selector),
        "start_after": tuple(DaemonSetRef(s.namespace, s.daemon_set) for s in spec.start_after),
        "gate": GateSpec(
            **_parallel(spec.gate.max_parallel),
            mode=GateMode(spec.gate.mode),
            policy=GatePolicy(spec.gate.policy),
            timeout=float(spec.gate.timeout_seconds),
            on_reboot=OnReboot(spec.gate.on_reboot),
        ),
        "rollout": _rollout(spec.rollout),
        "retry": RetrySpec(
            limit=spec.retry.limit,
            minimum=float(spec.retry.min_seconds),
            maximum=float(spec.retry.max_seconds),
            timeout=(
                float(spec.retry.timeout_seconds)
                if spec.retry.timeout_seconds is not None
                else None
            ),
        ),
        "keep": spec.retention.mode == "Keep",
        "max_usage": spec.disk.max_usage_percent,
        "dry_run": spec.dry_run,
        "refresh": RefreshSpec(float(spec.refresh.interval_seconds))
        if spec.refresh.mode == "Digest"
        else None,
    }


def _image_source(source: v1alpha1.ImageSource) -> ImageSource:
    api_version = source.api_version or ""
    return ImageSource(
        source.kind,
        source.namespace,
        _selector(source.selector),
        # So that both ways to write a built-in kind share one watch.
        "" if kinds.default(api_version, source.kind) else api_version,
        source.pod_templates,
        source.images,
    )


def _repository(spec: v1alpha1.Repository, default: tuple[str, ...]) -> RepositorySpec:
    policy, filter_ = spec.policy, spec.filter_tags
    ordered = policy.numerical or policy.alphabetical
    order = TagOrder.NUMERICAL if policy.numerical is not None else TagOrder.ALPHABETICAL
    named = spec.image_pull_secrets
    return RepositorySpec(
        spec.repository,
        TagPolicy(
            TagOrder.SEMVER if ordered is None else order,
            pattern=filter_.pattern if filter_ is not None else "",
            extract=(filter_.extract or "") if filter_ is not None else "",
            versions=policy.semver.range if policy.semver is not None else "",
            descending=ordered is not None and ordered.order == "desc",
            keep=spec.keep,
        ),
        default if named is None else tuple(secret.name for secret in named),
    )


def _selector(selector: meta.LabelSelector) -> tuple[Requirement, ...]:
    labels, expressions = selector.match_labels, selector.match_expressions
    return (
        *(Requirement(k, Operator.IN, frozenset((v,))) for k, v in sorted(labels.items())),
        *(Requirement(e.key, Operator(e.operator), frozenset(e.values)) for e in expressions),
    )


def _parallel(bound: int | str) -> dict[str, Any]:
    count, percent = parallel.parse(bound)
    return {"max_parallel": count, "percent": percent}


def _rollout(spec: v1alpha1.Rollout) -> RolloutSpec:
    return RolloutSpec(
        **_parallel(spec.max_parallel),
        seeds=spec.seeds,
        fanout=spec.fanout,
        topology_key=spec.topology_key,
        paused=spec.paused,
    )


FINALIZER_TRIES = 5
"""Attempts to patch the finalizers. Every conflict needs a write by another client."""


class Prefetches:
    def __init__(self, client: Client, reader: Reader) -> None:
        self._client = client
        self._reader = reader

    async def list(self) -> list[Prefetch]:
        return [self._reader.parse(body) async for body in self._client.list_all(PATH)]

    async def write_status(self, prefetch: Prefetch, status: Mapping[str, Any]) -> Prefetch:
        """Apply a merge patch (`domain.status.changes`) to the known status.

        Raises NotFound if the object was deleted, and Conflict if it has changed since, because a
        merge patch on the status of another writer would mix the two.
        """
        seen = {"uid": prefetch.uid, "resourceVersion": str(prefetch.version)}
        body = await self._client.patch(
            f"{PATH}/{prefetch.name}/status", {"metadata": seen, "status": status}, MERGE_PATCH
        )
        return self._reader.parse(body)

    async def get(self, name: str) -> Prefetch:
        """The current prefetch. Raises NotFound if it does not exist."""
        return self._reader.parse(await self._client.get(f"{PATH}/{name}"))

    async def add_finalizer(self, prefetch: Prefetch) -> Prefetch:
        """Returns the changed prefetch. Raises NotFound if it was deleted."""
        return await self._finalizers(prefetch, present=True)

    async def remove_finalizer(self, prefetch: Prefetch) -> None:
        with contextlib.suppress(NotFound):
            await self._finalizers(prefetch, present=False)

    async def _finalizers(self, prefetch: Prefetch, *, present: bool) -> Prefetch:
        """Add or remove our finalizer, and keep all others. Raises NotFound if the object was
        deleted. After `FINALIZER_TRIES` conflicts, returns the object as last read.
        """
        seen = prefetch
        for _ in range(FINALIZER_TRIES):
            if (FINALIZER in seen.finalizers) is present or seen.uid != prefetch.uid:
                return seen
            try:
                operations = finalizer_operations(seen, present=present)
                body = await self._client.patch(f"{PATH}/{seen.name}", operations, JSON_PATCH)
                return self._reader.parse(body)
            except Conflict as error:
                logger.debug("finalizers changed meanwhile", extra={"error": str(error)})
            # Read the object, because the watch may be stale.
            seen = await self.get(prefetch.name)
        return seen


def finalizer_operations(prefetch: Prefetch, *, present: bool) -> list[dict[str, Any]]:
    """The JSON patch that adds or removes our finalizer, with tests of the known object."""
    others = [f for f in prefetch.finalizers if f != FINALIZER]
    if prefetch.finalizers:
        test = {"path": "/metadata/finalizers", "value": list(prefetch.finalizers)}
    else:
        # "add" would replace a list that was added meanwhile, and a JSON patch cannot test that a
        # list is absent.
        test = {"path": "/metadata/resourceVersion", "value": str(prefetch.version)}
    return [
        {"op": "test", "path": "/metadata/uid", "value": prefetch.uid},
        {"op": "test", **test},
        {
            "op": "add",
            "path": "/metadata/finalizers",
            "value": [*others, FINALIZER] if present else others,
        },
    ]
