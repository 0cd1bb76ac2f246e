"""An API server and its etcd in memory: one sequence of versions, watches with history, pages.

`ApiServer.handle` answers one request immediately; `transport` carries requests and answers, and
delays or loses them. Stored bodies are never changed in place.
"""

from __future__ import annotations

import copy
import json
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jsonpatch

from tests.simulation.loop import EPOCH, elapsed
from tests.unit.memory_api import merge

Body = dict[str, Any]
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped kinds) and name."""

KINDS = {
    "nodes": "Node",
    "pods": "Pod",
    "events": "Event",
    "imageprefetches": "ImagePrefetch",
    "nodegates": "NodeGate",
    "leases": "Lease",
    "namespaces": "Namespace",
    "secrets": "Secret",
    "deployments": "Deployment",
    "mutatingadmissionpolicies": "MutatingAdmissionPolicy",
}
HISTORY = 4000
"""Number of changes of one kind after which a watch can still continue; otherwise it gets a 410."""
GRACE = "deletionGracePeriodSeconds"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it took effect, or as it was refused."""

    at: float
    actor: str
    method: str
    resource: str
    key: Key
    status: int
    before: Body | None = None
    after: Body | None = None
    sent: Any = None
    content_type: str = ""

    @property
    def applied(self) -> bool:
        return self.method not in ("GET", "LIST", "WATCH") and self.status < 300

    def __str__(self) -> str:
        what = f"{self.method} {self.resource} {'/'.join(filter(None, self.key))}"
        sent = "" if self.sent is None else f" {json.dumps(self.sent)[:220]}"
        return f"{self.at:10.2f} {self.actor:14} {self.status} {what}{sent}"


@dataclass(slots=True)
class Stored:
    body: Body
    encoded: bytes = b""

    def bytes(self) -> bytes:
        if not self.encoded:
            self.encoded = json.dumps(self.body, separators=(",", ":")).encode()
        return self.encoded


@dataclass(slots=True)
class Change:
    version: int
    type: str
    stored: Stored


@dataclass(slots=True)
class Watch:
    """The server's side of a watch; ``tell`` receives every selected change."""

    resource: str
    selects: Callable[[Body], bool]
    tell: Callable[[Change], None]
    known: set[Key] = field(default_factory=set)
    """The selected objects now. An object that stops matching is reported as DELETED."""


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, reason: str, message: str = "", retry: int = 0) -> None:
        super().__init__(message or reason)
        self.status, self.reason, self.retry = status, reason, retry

    @property
    def payload(self) -> bytes:
        body = {"kind": "Status", "code": self.status, "reason": self.reason, "message": str(self)}
        return json.dumps(body).encode()


class ApiServer:
    stored: type[Stored] = Stored
    """How objects are kept and encoded."""

    def __init__(self, rng: random.Random, history: int = HISTORY) -> None:
        self._rng = rng
        self.version = 1000
        self.objects: dict[str, dict[Key, Stored]] = {resource: {} for resource in KINDS}
        self.history: dict[str, deque[Change]] = {r: deque(maxlen=history) for r in KINDS}
        self.floor: dict[str, int] = dict.fromkeys(KINDS, 0)
        """For each kind, the version before which a watch cannot start any more."""
        self.watches: list[Watch] = []
        self.observers: list[Callable[[Request], None]] = []
        self.admit: Callable[[Request], None] = lambda _: None
        """Called before every request of a client; raises `Refused`."""
        self.admit_node: Callable[[Body], None] = lambda _: None
        """The admission policy: may change a Node that is created."""
        self.confirm: Callable[[Body], bool] = lambda _: False
        """Whether a kubelet has to confirm the end of this pod."""

    # ---- for the rest of the cluster

    def get(self, resource: str, name: str, namespace: str = "") -> Body | None:
        found = self.objects[resource].get((namespace, name))
        return found.body if found is not None else None

    def all(self, resource: str) -> list[Body]:
        return [stored.body for stored in self.objects[resource].values()]

    def do(
        self, actor: str, method: str, resource: str, key: Key, sent: Any = None, **how: Any
    ) -> Body | None:
        """A request of another component, which is never lost. None: it was refused."""
        try:
            return self.handle(actor, method, resource, key, sent=sent, **how)
        except Refused:
            return None

    def change(
        self, actor: str, resource: str, key: Key, edit: Callable[[Body], object]
    ) -> Body | None:
        """Read, change and write back, without a conflict."""
        stored = self.objects[resource].get(key)
        if stored is None:
            return None
        body = copy.deepcopy(stored.body)
        edit(body)
        return self._write(Request(elapsed(), actor, "PATCH", resource, key, 200), body)

    # ---- requests

    def handle(
        self,
        actor: str,
        method: str,
        resource: str,
        key: Key,
        *,
        sent: Any = None,
        subresource: str = "",
        content_type: str = "",
        query: Mapping[str, str] | None = None,
    ) -> Body:
        """The answer's body. Raises `Refused`."""
        query = query or {}
        request = Request(
            elapsed(), actor, method, resource, key, 200, sent=sent, content_type=content_type
        )
        try:
            self.admit(request)
            match method:
                case "GET":
                    body = self._found(request).body
                    self._observe(request)
                    return body
                case "POST":
                    return self._create(request, query)
                case "PATCH":
                    return self._patch(request, subresource)
                case "PUT":
                    return self._replace(request)
                case "DELETE":
                    return self._delete(request)
                case _:
                    raise AssertionError(method)
        except Refused as refused:
            self._observe(request, status=refused.status)
            raise

    def listed(
        self, actor: str, resource: str, namespace: str, query: Mapping[str, str]
    ) -> tuple[list[Stored], str, str]:
        """One page: objects, the list's version, and the token for the next page."""
        request = Request(elapsed(), actor, "LIST", resource, (namespace, ""), 200)
        self._admitted(request)
        selects = selector(namespace, query)
        version, start = self.version, 0
        if token := query.get("continue"):
            version, start = map(int, token.split(":"))
            if version < self.floor[resource]:
                raise Refused(410, "Expired", "the continue token is too old")
        found = [
            stored for key, stored in sorted(self.objects[resource].items()) if selects(stored.body)
        ]
        limit = int(query.get("limit", 0)) or len(found) + 1
        page = found[start : start + limit]
        more = f"{version}:{start + limit}" if start + limit < len(found) else ""
        return page, str(version), more

    def watch(
        self,
        actor: str,
        resource: str,
        namespace: str,
        query: Mapping[str, str],
        tell: Callable[[Change], None],
    ) -> Watch:
        """Report every change after ``resourceVersion``. Raises `Refused`; 410 if it is too old."""
        request = Request(elapsed(), actor, "WATCH", resource, (namespace, ""), 200)
        self._admitted(request)
        since = int(query.get("resourceVersion") or self.version)
        if since < self.floor[resource]:
            raise Refused(410, "Expired", f"too old resource version: {since}")
        watch = Watch(resource, selector(namespace, query), tell)
        # The objects that it selected at that version: the current objects without later changes.
        watch.known = {
            key for key, stored in self.objects[resource].items() if watch.selects(stored.body)
        }
        later = [change for change in self.history[resource] if change.version > since]
        for change in reversed(later):
            if watch.selects(change.stored.body) or change.type == "DELETED":
                watch.known.add(_key(change.stored.body))
            if change.type == "ADDED":
                watch.known.discard(_key(change.stored.body))
        for change in later:
            self._tell(watch, change)
        self.watches.append(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        if watch in self.watches:
            self.watches.remove(watch)

    def compact(self) -> None:
        """Compact as etcd does every 5 minutes: no watch can continue from earlier versions."""
        self.floor = dict.fromkeys(KINDS, self.version)
        for history in self.history.values():
            history.clear()

    # ---- implementation

    def _admitted(self, request: Request) -> None:
        """Note a list or a watch. Raises `Refused`."""
        try:
            self.admit(request)
        except Refused as refused:
            self._observe(request, status=refused.status)
            raise
        self._observe(request)

    def _found(self, request: Request) -> Stored:
        stored = self.objects[request.resource].get(request.key)
        if stored is None:
            raise Refused(404, "NotFound", f"{request.resource} {request.key[1]!r} not found")
        return stored

    def _create(self, request: Request, query: Mapping[str, str]) -> Body:
        body: Body = copy.deepcopy(request.sent)
        metadata = body.setdefault("metadata", {})
        namespace, name = request.key[0], metadata.get("name", "")
        if namespace and ("", namespace) not in self.objects["namespaces"]:
            raise Refused(404, "NotFound", f"namespaces {namespace!r} not found")
        key = (namespace, name)
        if key in self.objects[request.resource]:
            raise Refused(409, "AlreadyExists", f"{name} already exists")
        metadata.update(
            uid=f"{self._rng.getrandbits(48):012x}",
            creationTimestamp=timestamp(),
            generation=1,
        )
        if namespace:
            metadata["namespace"] = namespace
        body["kind"] = KINDS[request.resource]
        if request.resource == "nodes":
            self.admit_node(body)
        if query.get("dryRun"):
            return body
        return self._write(_with(request, key=key), body, "ADDED")

    def _patch(self, request: Request, subresource: str) -> Body:
        old = self._found(request).body
        if isinstance(request.sent, list):
            try:
                new: Body = jsonpatch.apply_patch(old, request.sent)
            except (jsonpatch.JsonPatchException, KeyError, IndexError) as error:
                text = f"the server rejected our request due to an error in our request: {error}"
                raise Refused(422, "Invalid", text) from error
        else:
            for name in ("uid", "resourceVersion"):
                expected = (request.sent.get("metadata") or {}).get(name)
                if expected not in (None, old["metadata"][name]):
                    raise Refused(409, "Conflict", f"Precondition failed: {name} in precondition")
            new = merge(old, request.sent)
        if subresource == "status":
            new = {**old, "status": new.get("status", {})}
        return self._write(request, new)

    def _replace(self, request: Request) -> Body:
        old = self._found(request).body
        expected = request.sent["metadata"].get("resourceVersion")
        if expected not in (None, old["metadata"]["resourceVersion"]):
            raise Refused(409, "Conflict", "the object has been modified")
        metadata = {**old["metadata"], **request.sent["metadata"]}
        if "annotations" not in request.sent["metadata"]:
            metadata.pop("annotations", None)
        return self._write(request, {**request.sent, "metadata": metadata})

    def _delete(self, request: Request) -> Body:
        old = self._found(request).body
        options = request.sent or {}
        for name, expected in (options.get("preconditions") or {}).items():
            if expected != old["metadata"][name]:
                raise Refused(409, "Conflict", f"Precondition failed: {name} in precondition")
        forced = options.get("gracePeriodSeconds") == 0
        waits = old["metadata"].get("finalizers") or (
            request.resource == "pods" and not forced and self.confirm(old)
        )
        if waits:
            if "deletionTimestamp" in old["metadata"]:
                return old
            marked = {"deletionTimestamp": timestamp(), GRACE: 1}
            return self._write(request, {**old, "metadata": {**old["metadata"], **marked}})
        self._remove(request, old)
        return old

    def _remove(self, request: Request, old: Body) -> None:
        self.version += 1
        body = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
        del self.objects[request.resource][request.key]
        self._publish(request.resource, Change(self.version, "DELETED", self.stored(body)))
        self._observe(request, before=old, after=None)

    def _write(self, request: Request, body: Body, type_: str = "MODIFIED") -> Body:
        stored = self.objects[request.resource].get(request.key)
        old = stored.body if stored is not None else None
        if old is not None:
            if _same(old, body):
                self._observe(request, before=old, after=old)
                return old
            if old.get("spec") != body.get("spec"):
                generation = old["metadata"].get("generation", 1) + 1
                body = {**body, "metadata": {**body["metadata"], "generation": generation}}
        self.version += 1
        body = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        if "deletionTimestamp" in body["metadata"] and not (
            body["metadata"].get("finalizers") or request.resource == "pods"
        ):
            del self.objects[request.resource][request.key]
            self._publish(request.resource, Change(self.version, "DELETED", self.stored(body)))
            self._observe(request, before=old, after=None)
            return body
        new = self.stored(body)
        self.objects[request.resource][request.key] = new
        self._publish(request.resource, Change(self.version, type_, new))
        self._observe(request, before=old, after=body)
        return body

    def _publish(self, resource: str, change: Change) -> None:
        history = self.history[resource]
        if len(history) == history.maxlen:
            self.floor[resource] = history[0].version
        history.append(change)
        for watch in list(self.watches):
            if watch.resource == resource:
                self._tell(watch, change)

    @staticmethod
    def _tell(watch: Watch, change: Change) -> None:
        key = _key(change.stored.body)
        if change.type != "DELETED" and watch.selects(change.stored.body):
            type_ = "MODIFIED" if key in watch.known else "ADDED"
            watch.known.add(key)
            watch.tell(Change(change.version, type_, change.stored))
        elif key in watch.known:
            watch.known.discard(key)
            watch.tell(Change(change.version, "DELETED", change.stored))

    def _observe(
        self,
        request: Request,
        *,
        status: int = 200,
        before: Body | None = None,
        after: Body | None = None,
    ) -> None:
        seen = _with(request, status=status, before=before, after=after)
        for observer in self.observers:
            observer(seen)


def _with(request: Request, **changes: Any) -> Request:
    fields = {name: getattr(request, name) for name in request.__slots__}
    return Request(**{**fields, **changes})


def _key(body: Body) -> Key:
    return body["metadata"].get("namespace", ""), body["metadata"]["name"]


def _same(old: Body, new: Body) -> bool:
    ignored = {"resourceVersion": None, "generation": None}
    return {**old, "metadata": {**old["metadata"], **ignored}} == {
        **new,
        "metadata": {**new["metadata"], **ignored},
    }


def selector(namespace: str, query: Mapping[str, str]) -> Callable[[Body], bool]:
    """What a list or watch selects by namespace, labels and a few fields."""
    labels = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
    pairs = [part.split("=") for part in query.get("fieldSelector", "").split(",") if part]
    fields = {pair[0]: pair[1] for pair in pairs}

    def selects(body: Body) -> bool:
        metadata = body["metadata"]
        if namespace and metadata.get("namespace") != namespace:
            return False
        has = metadata.get("labels") or {}
        if not all(has.get(k) == v if sign else k in has for k, sign, v in labels):
            return False
        return all(_field(body, name) == value for name, value in fields.items())

    return selects


def _field(body: Body, path: str) -> Any:
    found: Any = body
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def timestamp(skew: float = 0.0) -> str:
    """RFC 3339, by a clock that is ``skew`` seconds ahead of the API server's."""
    seconds = int(EPOCH + elapsed() + skew)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(text: str) -> float:
    """Seconds since an RFC 3339 time, by the API server's clock."""
    return EPOCH + elapsed() - datetime.fromisoformat(text).timestamp()
