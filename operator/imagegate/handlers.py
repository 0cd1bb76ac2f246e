"""kopf's part: what the watches see goes into the store. No logic, and nothing is written.

Only ``on.event``: the other handlers annotate or put finalizers on every object they see, which
no Node of anybody's cluster deserves. Handlers return None, or kopf would write the value into
the object's status.
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
    """Where everything that the watches see goes, whoever watches: parsed, and into the store.

    ``type_`` is that of the watch event; None for an object that was found in a list.
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
    """Watch what is cluster-scoped by kopf, until cancelled or until it cannot go on. Pods and
    their events are watched for each namespace by itself (`runtime.reflector`).
    """
    registry = kopf.OperatorRegistry()
    register(registry, sightings)
    # kopf would look up the user's name, and a container's user has none.
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
        # kopf goes by the name kubernetes.default.svc: but the pods that answer for names may
        # themselves be waiting for a node that we hold.
        return dataclasses.replace(in_cluster, server=_api_server())

    @kopf.on.event("", "v1", "nodes", registry=registry)
    async def node(event: Event, **_: Any) -> None:
        sightings.node(event["type"], event["object"])

    @kopf.on.event("imagegate.dev", "v1alpha1", "imageprefetches", registry=registry)
    async def prefetch(event: Event, **_: Any) -> None:
        sightings.prefetch(event["type"], event["object"])

    @kopf.on.event("imagegate.dev", "v1alpha1", "nodegates", registry=registry)
    async def gate(event: Event, **_: Any) -> None:
        sightings.gate(event["type"], event["object"])


def _api_server() -> str:
    """The API server's address, as the kubelet tells every container."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def settings() -> kopf.OperatorSettings:
    """kopf, told to watch and to keep its hands off everything else."""
    made = kopf.OperatorSettings()
    made.peering.standalone = True
    made.scanning.disabled = True
    made.posting.enabled = False
    made.watching.chunk_size = 500
    made.watching.server_timeout = 300
    made.watching.client_timeout = 310
    made.watching.connect_timeout = 30
    # Together: a finished worker keeps its slot for idle_timeout, and the default is 5 s.
    made.queueing.worker_limit = 64
    made.queueing.idle_timeout = 0.05
    made.networking.request_timeout = 30
    made.networking.enforce_retry_after = True
    # It logs "Handler succeeded" at INFO for every event of every Node.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    return made
