"""kopf's handlers, and the readers of all watch events: they put objects into the store. They
contain no logic and write nothing.

Only ``on.event`` is used, because kopf's other handlers write annotations or finalizers to every
object. Handlers return None, because kopf writes any other value into the object's status.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kopf

from imagegate.domain.facts import Node
from imagegate.kube import gates, prefetches
from imagegate.metrics import Metrics
from imagegate.puller import read
from imagegate.runtime import watches
from imagegate.runtime.store import Store

Event = Any
Body = Mapping[str, Any]


class Sightings:
    """Parses the objects of all watches, and puts them into the store.

    ``type_`` is the type of the watch event; None for an object in a list.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        reader: prefetches.Reader,
        read_node: Callable[[Body], Node],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._reader = reader
        self._read_node = read_node

    def node(self, type_: str | None, body: Body) -> None:
        seen = self._read_node(body)
        self._store.watches.told(watches.NODES, seen.version)
        if type_ == "DELETED":
            self._store.lose_node(seen.name, seen.uid, seen.version)
        else:
            self._store.see_node(seen)

    def pod(self, type_: str | None, body: Body) -> None:
        seen = read.pod(body)
        if type_ == "DELETED":
            self._store.lose_pod(seen.namespace, seen.name, seen.uid, seen.version)
        else:
            self._store.see_pod(seen, live=type_ is not None)

    def event(self, type_: str | None, body: Body) -> None:
        """A kubelet's Pulled event."""
        said = read.pulled(body)
        if said is None or type_ == "DELETED":
            return
        namespace = body["metadata"]["namespace"]
        prefetch = self._store.prefetch_of(namespace, said.pod_name)
        if self._store.see_pulled(namespace, said) and type_ is not None:
            self._metrics.pulled(prefetch, said.seconds, said.size)

    def prefetch(self, type_: str | None, body: Body) -> None:
        seen = self._reader.parse(body)
        self._store.watches.told(watches.PREFETCHES, seen.version)
        if type_ == "DELETED":
            self._store.lose_prefetch(seen.name, seen.uid, seen.version)
        else:
            self._store.see_prefetch(seen)

    def gate(self, type_: str | None, body: Body) -> None:
        if body["metadata"]["name"] == gates.NAME:
            seen = gates.parse(body)
            self._store.watches.told(watches.GATES, seen.version)
            if type_ == "DELETED":
                self._store.lose_gate(seen.uid, seen.version)
            else:
                self._store.see_gate(seen)


async def watch(sightings: Sightings, namespaces: Sequence[str], identity: str) -> None:
    """Watch the operator's own kinds with kopf, until cancelled or until an error of kopf. The
    kinds that come by the thousand have watches of their own (`runtime.reflector`).
    """
    registry = kopf.OperatorRegistry()
    register(registry, sightings)
    # Without an identity, kopf would look up the user's name, which a container's user lacks.
    who: Any = identity
    await kopf.operator(
        registry=registry,
        settings=settings(),
        namespaces=namespaces,
        standalone=True,
        identity=who,
    )


def register(registry: kopf.OperatorRegistry, sightings: Sightings) -> None:
    """Bind kopf's handlers."""

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        in_cluster = kopf.login_with_service_account(**kwargs)
        if in_cluster is None:
            return kopf.login_with_kubeconfig(**kwargs)
        # kopf uses the DNS name kubernetes.default.svc. Use the address instead, because the DNS
        # pods may wait for a node that the operator holds.
        return dataclasses.replace(in_cluster, server=_api_server())

    @kopf.on.event("imagegate.dev", "v1alpha1", "imageprefetches", registry=registry)
    async def prefetch(event: Event, **_: Any) -> None:
        sightings.prefetch(event["type"], event["object"])

    @kopf.on.event("imagegate.dev", "v1alpha1", "nodegates", registry=registry)
    async def gate(event: Event, **_: Any) -> None:
        sightings.gate(event["type"], event["object"])


def _api_server() -> str:
    """The API server's address, from the variables that the kubelet sets in every container."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def settings() -> kopf.OperatorSettings:
    """Settings with which kopf only watches, and writes nothing."""
    made = kopf.OperatorSettings()
    made.peering.standalone = True
    made.scanning.disabled = True
    made.posting.enabled = False
    made.watching.chunk_size = 500
    made.watching.server_timeout = 300
    made.watching.client_timeout = 310
    made.watching.connect_timeout = 30
    # Both are needed, because an idle worker keeps its slot for idle_timeout, 5 s by default.
    made.queueing.worker_limit = 64
    made.queueing.idle_timeout = 0.05
    made.networking.request_timeout = 30
    made.networking.enforce_retry_after = True
    # kopf logs "Handler succeeded" at INFO for every event.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    return made
