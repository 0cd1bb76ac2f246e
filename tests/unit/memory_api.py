"""An API server in memory, with the semantics that make operators fail: resourceVersions, JSON
patches whose ``test`` fails (422), names that exist (409), preconditions, finalizers, watches.

Tests use it where a fault must occur at an exact request. Everything else is tested on a real
cluster in ``tests/e2e``.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import jsonpatch

from imagegate.api.fields import timestamp
from imagegate.kube import errors
from imagegate.kube.client import JSON_PATCH, Page

COLLECTIONS = frozenset(
    {"pods", "nodes", "imageprefetches", "leases", "events", "configmaps"}
    | {"deployments", "statefulsets", "daemonsets", "jobs", "cronjobs", "rollouts"}
)

Watcher = Callable[[str, dict[str, Any]], None]


class MemoryApi:
    """Replaces :class:`imagegate.kube.client.Client`."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.watchers: list[Watcher] = []
        self.before: Callable[[str, str], None] = lambda method, path: None
        """Called before every request; an exception that it raises is the answer."""
        self.fence: Callable[[], None] = lambda: None
        self.now: Callable[[], float] = time.time
        self._version = 100
        self.watched: list[tuple[str, str]] = []
        """The started watches, each with the version from which it continues."""
        self._history: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        self._watches: list[tuple[str, asyncio.Queue[Any]]] = []

    # ---- the interface of Client

    async def close(self) -> None: ...

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        self._request("GET", path)
        if path in self.objects:
            return copy.deepcopy(self.objects[path])
        if not self._is_collection(path):
            raise self._error("GET", path, 404, "NotFound")
        version = {"resourceVersion": str(self._version)}
        return {"metadata": version, "items": self._items(path, query)}

    async def page(self, path: str, *, token: str = "", limit: int = 0, **query: str) -> Page:
        """All objects, at any limit."""
        body = await self.get(path, **query)
        return Page(body["metadata"]["resourceVersion"], "", iter(body["items"]))

    async def list_all(self, path: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        self._request("LIST", path)
        for item in self._items(path, query):
            yield item

    async def watch(
        self, path: str, version: str, **_: str
    ) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        """The changes of a collection, until `end_watches`."""
        self._request("WATCH", path)
        self.watched.append((path, version))
        news: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()
        for happened in self._history.get(path, ()):
            if int(happened[1]["metadata"]["resourceVersion"]) > int(version):
                news.put_nowait(happened)
        self._watches.append((path, news))
        while (event := await news.get()) is not None:
            if event[0] == "ERROR":
                raise self._error("WATCH", path, event[1]["code"], "Expired")
            yield event

    def end_watches(self, code: int = 0) -> None:
        """Ends all watches as the API server does: normally, or with an ERROR of `code`."""
        watches, self._watches = self._watches, []
        for _, news in watches:
            news.put_nowait(("ERROR", {"code": code}) if code else None)

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> dict[str, Any]:
        self.fence()
        self._request("POST", path)
        key = f"{path}/{body['metadata']['name']}"
        if key in self.objects:
            raise self._error("POST", key, 409, "AlreadyExists")
        made = copy.deepcopy(dict(body))
        made["metadata"].setdefault("uid", f"uid-{self._version}")
        made["metadata"].setdefault("creationTimestamp", timestamp(self.now()))
        if query.get("dryRun") != "All":
            self._store(key, made, "ADDED")
        return copy.deepcopy(made)

    create_unfenced = create

    async def replace(
        self, path: str, body: Mapping[str, Any], *, fenced: bool = True
    ) -> dict[str, Any]:
        self._request("PUT", path)
        old = self._known("PUT", path)
        if body["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
            raise self._error("PUT", path, 409, "Conflict")
        self._store(path, copy.deepcopy(dict(body)), "MODIFIED")
        return copy.deepcopy(self.objects[path])

    async def patch(
        self,
        path: str,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        content_type: str,
        *,
        urgent: bool = False,
    ) -> dict[str, Any]:
        self.fence()
        self._request("PATCH", path)
        key = path.removesuffix("/status").removesuffix("/scale")
        old = self._known("PATCH", key)
        if content_type == JSON_PATCH:
            try:
                assert not isinstance(body, Mapping)
                new = jsonpatch.apply_patch(old, list(body))
            except jsonpatch.JsonPatchException as error:
                text = f"the server rejected our request due to an error in our request: {error}"
                raise self._error("PATCH", path, 422, "Invalid", text) from error
        else:
            assert isinstance(body, Mapping)
            uid = body.get("metadata", {}).get("uid")
            if uid is not None and uid != old["metadata"]["uid"]:
                raise self._error("PATCH", path, 409, "Conflict")
            version = body.get("metadata", {}).get("resourceVersion")
            if version not in (None, old["metadata"]["resourceVersion"]):
                raise self._error("PATCH", path, 409, "Conflict")
            new = merge(old, body)
        if new != old:
            self._store(key, new, "MODIFIED")
        return copy.deepcopy(self.objects.get(key, new))

    async def delete(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.fence()
        self._request("DELETE", path)
        old = self._known("DELETE", path)
        for name, expected in (body or {}).get("preconditions", {}).items():
            if expected != old["metadata"][name]:
                raise self._error("DELETE", path, 409, "Conflict")
        self.remove(path)
        return old

    # ---- changes by the rest of the cluster

    def put(self, path: str, body: dict[str, Any]) -> None:
        """Another client writes an object."""
        self._store(path, copy.deepcopy(body), "MODIFIED" if path in self.objects else "ADDED")

    def change(self, path: str, edit: Callable[[dict[str, Any]], None]) -> None:
        body = copy.deepcopy(self.objects[path])
        edit(body)
        self._store(path, body, "MODIFIED")

    def remove(self, path: str) -> None:
        old = self.objects[path]
        if old["metadata"].get("finalizers"):
            old["metadata"].setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")
            self._store(path, old, "MODIFIED")
            return
        del self.objects[path]
        self._version += 1
        self._publish(
            "DELETED",
            path,
            {**old, "metadata": {**old["metadata"], "resourceVersion": str(self._version)}},
        )

    def writes(self) -> list[tuple[str, str]]:
        return [(m, p) for m, p in self.requests if m not in ("GET", "LIST", "WATCH")]

    def _request(self, method: str, path: str) -> None:
        self.requests.append((method, path))
        self.before(method, path)

    def _known(self, method: str, path: str) -> dict[str, Any]:
        if path not in self.objects:
            raise self._error(method, path, 404, "NotFound")
        return copy.deepcopy(self.objects[path])

    def _store(self, key: str, body: dict[str, Any], kind: str) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.objects[key] = body
        gone = "deletionTimestamp" in body["metadata"] and not body["metadata"].get("finalizers")
        if gone:
            del self.objects[key]
        self._publish("DELETED" if gone else kind, key, body)

    def _publish(self, kind: str, key: str, body: dict[str, Any]) -> None:
        collection, event = key.rpartition("/")[0], (kind, copy.deepcopy(body))
        self._history.setdefault(collection, []).append(event)
        for path, news in self._watches:
            if path == collection:
                news.put_nowait(event)
        for watcher in self.watchers:
            watcher(kind, copy.deepcopy(body))

    def _is_collection(self, path: str) -> bool:
        return path.rsplit("/", 1)[1] in COLLECTIONS

    def _items(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        wanted = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
        field, _, wanted_value = query.get("fieldSelector", "").partition("=")

        def matches(body: dict[str, Any]) -> bool:
            labels = body["metadata"].get("labels") or {}
            return all(
                labels.get(key) == value if sep else key in labels for key, sep, value in wanted
            )

        return [
            copy.deepcopy(body)
            for key, body in self.objects.items()
            if key.rpartition("/")[0] == path
            and matches(body)
            and (not field or _value(body, field) == wanted_value)
        ]

    def _error(
        self, method: str, path: str, status: int, reason: str, text: str = ""
    ) -> errors.KubeError:
        body = json.dumps({"reason": reason, "message": text or reason}).encode()
        return errors.from_response(f"{method} {path}", method, status, body, None)


def _value(body: Any, field: str) -> Any:
    for part in field.split("."):
        body = body.get(part) or {}
    return body


def merge(old: Any, change: Any) -> Any:
    """RFC 7396."""
    if not isinstance(change, Mapping):
        return change
    merged = dict(old) if isinstance(old, Mapping) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged
