"""The operator's requests, from the API server's audit log.

The API server's metrics have no label for the user, and the operator's own client metrics have none
for the resource. The audit log has both, the bodies of the writes, and the times at which the API
server had received and answered each request. It holds only the operator's requests and kwok's
updates of pods, so that it costs little.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cluster.plan import JSON_PATCH, MERGE_PATCH, Chain, Plan, Write

KWOK = "kwok"
METHODS = {"create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}
NOT_WORK = ("leases", "nodegates/status")
"""The renewals of the Lease and the heartbeats: they depend on the time alone."""


def policy(user: str) -> str:
    """The audit policy of a cluster whose operator is this user."""
    writes = {"level": "Request", "users": [user], "verbs": list(METHODS)}
    pods = {
        "level": "Metadata",
        "users": [KWOK],
        "verbs": ["patch"],
        "resources": [{"group": "", "resources": ["pods/status"]}],
    }
    return yaml.safe_dump(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "omitManagedFields": True,
            "rules": [writes, {"level": "Metadata", "users": [user]}, pods, {"level": "None"}],
        }
    )


@dataclass(frozen=True, slots=True)
class Request:
    user: str
    verb: str
    resource: str
    """With the subresource: ``imageprefetches/status``."""
    name: str
    uri: str
    code: int
    begun: float
    ended: float
    """Seconds since the epoch, by the API server."""
    body: Any

    @property
    def key(self) -> str:
        return f"{self.verb} {self.resource}"

    @property
    def works(self) -> bool:
        """Whether it is a successful write that the scenario caused."""
        return (
            self.verb in METHODS
            and self.code < 400
            and self.resource not in NOT_WORK
            and "dryRun=" not in self.uri
        )


def read(path: Path, offset: int) -> list[Request]:
    """The requests after this byte of the log, by the time at which they were received."""
    with path.open("rb") as file:
        file.seek(offset)
        lines = [line for line in file if line.endswith(b"\n")]
    found = list(_parse(lines))
    found.sort(key=lambda request: request.begun)
    return found


def _parse(lines: Iterable[bytes]) -> Iterator[Request]:
    for line in lines:
        event = json.loads(line)
        # A watch is one request, and is reported when it begins and when it ends.
        if event["verb"] == "watch" and event["stage"] != "ResponseStarted":
            continue
        if event["verb"] != "watch" and event["stage"] != "ResponseComplete":
            continue
        reference = event.get("objectRef") or {}
        resource = str(reference.get("resource") or event["requestURI"].partition("?")[0])
        if sub := reference.get("subresource"):
            resource += f"/{sub}"
        yield Request(
            user=event["user"]["username"],
            verb=event["verb"],
            resource=resource,
            name=reference.get("name", ""),
            uri=event["requestURI"],
            code=int((event.get("responseStatus") or {}).get("code") or 0),
            begun=_seconds(event["requestReceivedTimestamp"]),
            ended=_seconds(event["stageTimestamp"]),
            body=event.get("requestObject"),
        )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def counted(requests: Iterable[Request], user: str) -> dict[str, int]:
    """The user's requests by verb and resource; refused ones have their status."""
    found = Counter(
        request.key if request.code < 400 else f"{request.key} {request.code}"
        for request in requests
        if request.user == user
    )
    return dict(sorted(found.items()))


def latencies(requests: Iterable[Request], user: str) -> tuple[list[float], list[float]]:
    """Seconds from the success of a node's last puller pod until the node's patch was complete: of
    patches that remove the gate's taint, and of the others. Both times are the API server's.
    """
    node_of: dict[str, str] = {}
    succeeded: dict[str, float] = {}
    released: list[float] = []
    labelled: list[float] = []
    ordered = sorted(requests, key=lambda request: request.ended)
    # A pod may succeed before the answer to its creation is complete.
    for request in ordered:
        if request.user == user and request.key == "create pods" and request.works:
            node_of[request.body["metadata"]["name"]] = request.body["spec"]["nodeName"]
    for request in ordered:
        if request.user == KWOK and request.code < 400 and request.name in node_of:
            succeeded[node_of[request.name]] = request.ended
        elif request.user == user and request.key == "patch nodes" and request.works:
            since = succeeded.pop(request.name, None)
            if since is not None:
                taint = any(
                    operation["op"] == "remove" and operation["path"].startswith("/spec/taints/")
                    for operation in request.body
                )
                (released if taint else labelled).append(request.ended - since)
    return released, labelled


@dataclass(frozen=True, slots=True)
class Known:
    """What the log does not say, or said in an earlier part."""

    zones: Mapping[str, str]
    """The zone of every node."""
    joining: Collection[str] = ()
    """The nodes that join while the plan is played."""
    pods: dict[str, str] = field(default_factory=dict)
    """The node of every puller pod that was created so far."""


def plan(requests: Iterable[Request], user: str, known: Known) -> Plan:
    """The successful writes of the user, in their order."""
    made = Plan()
    chains: dict[str, Chain] = {}
    for count, request in enumerate(r for r in requests if r.user == user and r.works):
        node = _node(request, known.pods)
        if node not in known.zones:
            made.others.append((count, _write(request)))
            continue
        if node not in chains:
            joins = node in known.joining
            chains[node] = Chain(node, known.zones[node], _uid(request), joins)
        chains[node].writes.append(_write(request))
    made.chains.extend(chains.values())
    return made


def _node(request: Request, pods: dict[str, str]) -> str:
    """The node that a write is about; empty: none."""
    if request.key == "create pods":
        node: str = request.body["spec"]["nodeName"]
        pods[request.body["metadata"]["name"]] = node
        return node
    if request.key == "delete pods":
        return pods.get(request.name, "")
    return request.name if request.key == "patch nodes" else ""


def _uid(request: Request) -> str:
    """The node's uid in a body."""
    if request.key == "create pods":
        return str(request.body["metadata"]["ownerReferences"][0]["uid"])
    if request.key == "patch nodes":
        return next(str(o["value"]) for o in request.body if o["path"] == "/metadata/uid")
    return ""


def _write(request: Request) -> Write:
    """The request as it was, without what is true for one object only: the uids and versions of
    pods and ImagePrefetches, and the names of Events.

    The body of a new pod has the API server's defaults, because they are set before the audit.
    """
    method, body, pod = METHODS[request.verb], request.body, ""
    kind = request.resource.partition("/")[0]
    content_type = "application/json"
    if method == "PATCH":
        content_type = JSON_PATCH if isinstance(body, list) else MERGE_PATCH
    if request.key == "create pods":
        pod = body["metadata"]["name"]
        body = {key: value for key, value in body.items() if key != "status"}
    elif request.key == "delete pods":
        body = {}
    elif kind == "events":
        body = {**body, "metadata": {**body["metadata"], "name": f"{body['metadata']['name']}f"}}
    elif kind == "imageprefetches" and isinstance(body, list):
        body = [o for o in body if o["op"] != "test" or o["path"] == "/metadata/finalizers"]
    elif kind == "imageprefetches":
        body = {key: value for key, value in body.items() if key != "metadata"}
    return Write(method, request.uri, json.dumps(body), content_type, pod)
