"""Finds the receiver of a path."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Mapping
from pathlib import Path

from imagegate.hooks import configuration
from imagegate.hooks.event import Receiver, Source

logger = logging.getLogger(__name__)


class Directory:
    """The receivers of the last valid file. The errors of a newer, invalid file are logged."""

    def __init__(self, file: Path, sources: Mapping[str, Source]) -> None:
        self._file = file
        self._sources = sources
        self._entries: tuple[tuple[bytes, Receiver], ...] = ()
        self._problem: str | None = None
        self._read = False

    def reload(self) -> None:
        """Read the file; an invalid file changes nothing. Blocks briefly on a small local file."""
        try:
            receivers = configuration.load(self._file, self._sources)
        except configuration.InvalidConfiguration as error:
            if str(error) != self._problem:
                self._problem = str(error)
                logger.error("push receivers not read", extra={"error": self._problem})
            return
        entries = tuple((_digest(receiver.path), receiver) for receiver in receivers)
        if entries != self._entries or not self._read or self._problem is not None:
            names = [receiver.name for receiver in receivers]
            logger.info("push receivers read", extra={"receivers": names})
        self._entries, self._problem, self._read = entries, None, True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(receiver.name for _, receiver in self._entries)

    def find(self, path: str) -> Receiver | None:
        """The receiver of ``/hooks/<path>``.

        Compares digests, and always all of them, so that the duration reveals nothing about the
        configured paths.
        """
        wanted = _digest(path)
        found = None
        for digest, receiver in self._entries:
            if hmac.compare_digest(digest, wanted):
                found = receiver
        return found


def _digest(path: str) -> bytes:
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
