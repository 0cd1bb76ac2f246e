"""Lists and watches one collection, with the operator's own client: Nodes, and in each puller
namespace the pods and the events.

kopf is not used for these, for two reasons. It runs a task with a queue for each object, and copies
and compares each object, which costs a millisecond of CPU time for an event of a Node. And it ends
the whole operator when one list or watch is refused: the puller namespaces belong to several teams,
and one of them may be deleted, so each has a watch with a failure state of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

from imagegate.errors import ImagegateError
from imagegate.kube.client import PAGE, Client
from imagegate.kube.errors import Gone

logger = logging.getLogger(__name__)

FIRST_RETRY = 0.2
LAST_RETRY = 15.0

Tell = Callable[[str | None, Mapping[str, Any]], None]
"""Receives the type of an event (None for an object of a list) and the object."""


class Reflector:
    """``listing=False``: only events from now on are reported, and no existing objects."""

    def __init__(
        self, client: Client, path: str, query: Mapping[str, str], tell: Tell, *, listing: bool
    ) -> None:
        self._client = client
        self._path = path
        self._query = dict(query)
        self._tell = tell
        self._listing = listing
        self._known: dict[str, Mapping[str, str]] = {}
        """What a deletion needs of the metadata of every reported object, by name."""

    async def run(self) -> None:
        """Run until cancelled. A failed list or watch is tried again, with a back-off."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            try:
                version = await self._list()
                while True:
                    version = await self._watch(version)
                    await asyncio.sleep(FIRST_RETRY)
            except Gone:
                logger.info("watch too old, listing again", extra={"path": self._path})
            except ImagegateError as error:
                # A list that works does not end the back-off: the watch may be refused each time.
                failures = 1 if loop.time() - began > LAST_RETRY else failures + 1
                if failures == 1:
                    logger.warning(
                        "not watched, will be retried",
                        extra={"path": self._path, "error": str(error)},
                    )
            delay = min(LAST_RETRY, FIRST_RETRY * 2 ** min(failures, 8))
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311

    async def _list(self) -> str:
        """Report every object, and the deletion of objects that are not listed any more. Returns
        the list's resourceVersion.
        """
        found: dict[str, Mapping[str, str]] = {}
        version, token = "", ""
        while True:
            limit = PAGE if self._listing else 1
            page = await self._client.page(self._path, token=token, limit=limit, **self._query)
            version = version or page.version
            for item in page.items if self._listing else ():
                found[item["metadata"]["name"]] = _identity(item["metadata"])
                self._report(None, item)
            token = page.token
            if not (token and self._listing):
                break
        for name in self._known.keys() - found.keys():
            ended = {**self._known[name], "resourceVersion": version}
            self._report("DELETED", {"metadata": ended})
        self._known = found
        return version

    async def _watch(self, version: str) -> str:
        """Watch until the API server ends it. Returns the version from which the next continues."""
        async with aclosing(self._client.watch(self._path, version, **self._query)) as events:
            async for type_, body in events:
                metadata = body.get("metadata") or {}
                version = str(metadata.get("resourceVersion") or version)
                if type_ == "BOOKMARK":
                    continue
                if self._listing:
                    name = metadata["name"]
                    if type_ == "DELETED":
                        self._known.pop(name, None)
                    else:
                        self._known[name] = _identity(metadata)
                self._report(type_, body)
        return version

    def _report(self, type_: str | None, body: Mapping[str, Any]) -> None:
        """Report one object. An unreadable object must not end the watch of the others, because
        every user who may create pods in the namespace may give them the operator's labels.
        """
        try:
            self._tell(type_, body)
        except Exception:
            name = (body.get("metadata") or {}).get("name")
            logger.exception("object not read", extra={"path": self._path, "object": name})


def _identity(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    """The object's identity. The rest of the metadata, such as labels and managedFields, would need
    several KB of memory for each object.
    """
    return {key: metadata[key] for key in ("namespace", "name", "uid") if key in metadata}
