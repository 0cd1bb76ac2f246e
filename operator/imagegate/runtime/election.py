"""Leader election by a Lease: only the leader writes, and it knows when its leadership ends.

Own code, because ``kubernetes.aio.leaderelection`` 37.0.2 cannot create its Lease and continues to
lead when the connection breaks, and kopf's peering pauses all processes of equal priority. The
rules are client-go's (15, 10 and 2 s), with two changes so that a standby leads at most 12 s after
the leader was killed: a lease of 11 s, and a standby that reads the Lease more often and tries when
it expires, not in the next round. Clocks of other processes are never trusted: a holder counts as
alive while its record keeps changing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto

from imagegate.kube.errors import AlreadyExists, Conflict, KubeError, NotFound, NotLeader
from imagegate.kube.leases import LeaseRecord, Leases
from imagegate.runtime.clock import Clock

logger = logging.getLogger(__name__)

LEASE_SECONDS = 11
RENEW_DEADLINE = 7.5
"""Seconds without a renewal after which the leader stops to write: three renewals have failed. The
rest of the lease must be longer than a connection attempt (`kube.client.TIMEOUT`)."""
RETRY_PERIOD = 2.0
STANDBY_PERIOD = 0.8
"""Seconds between two reads of the Lease by a standby. The lease counts from the first read of the
last renewal, so a takeover is this much later at most."""


class Step(Enum):
    """What to do next about the Lease."""

    CREATE = auto()
    TAKE = auto()
    RENEW = auto()
    WAIT = auto()


@dataclass(frozen=True, slots=True)
class Observation:
    """A record of the Lease, and since when it has looked like this (monotonic seconds)."""

    record: LeaseRecord | None
    at: float


def observe(earlier: Observation | None, record: LeaseRecord | None, now: float) -> Observation:
    """The time stays the same while the record does: since then the holder has been silent."""
    if earlier is not None and earlier.record == record:
        return earlier
    return Observation(record, now)


def decide(seen: Observation, identity: str, now: float) -> Step:
    """The next step of the candidate or leader called ``identity``. A pure function."""
    record = seen.record
    if record is None:
        return Step.CREATE
    if record.holder == identity:
        return Step.RENEW
    if not record.holder or now >= seen.at + record.duration:
        return Step.TAKE
    return Step.WAIT


class Leadership:
    """Until when this process certainly leads. Created before the client whose writes it fences."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._deadline = float("-inf")

    @property
    def lasts(self) -> bool:
        return self._clock.monotonic() < self._deadline

    def extend(self, deadline: float) -> None:
        """``deadline``: monotonic."""
        self._deadline = deadline

    def end(self) -> None:
        self._deadline = float("-inf")

    def fence(self) -> None:
        """Raise NotLeader unless this process certainly still leads."""
        if not self.lasts:
            raise NotLeader("this process does not lead (any more); the write was not sent")


class Elector:
    def __init__(self, leases: Leases, identity: str, clock: Clock, leadership: Leadership) -> None:
        self._leases = leases
        self._identity = identity
        self._clock = clock
        self._leadership = leadership
        self._seen: Observation | None = None
        self._last = LeaseRecord()
        """The Lease as it was last seen, so that a deleted Lease gets its annotations again."""

    @property
    def leading(self) -> bool:
        return self._leadership.lasts

    @property
    def holder(self) -> str:
        """Identity of the leader, as far as this process knows."""
        return self._seen.record.holder if self._seen and self._seen.record else ""

    async def acquire(self) -> None:
        """Return once this process leads."""
        while not await self._try():
            await asyncio.sleep(self._pause())
        logger.info("leading", extra={"identity": self._identity})

    def _pause(self) -> float:
        """Seconds until a standby's next round: not later than the end of the lease."""
        period = STANDBY_PERIOD * random.uniform(0.9, 1.0)  # noqa: S311
        if self._seen is None or self._seen.record is None:
            return period
        left = self._seen.at + self._seen.record.duration - self._clock.monotonic()
        if left <= 0:
            return period  # the lease has ended, but the round has failed
        return max(0.01, min(period, left))

    async def hold(self) -> None:
        """Renew until leadership is lost, then return. The process must exit then."""
        while self.leading:
            await asyncio.sleep(RETRY_PERIOD)
            await self._try()
            if self._seen and self._seen.record and self.holder != self._identity:
                self._leadership.end()
        logger.error("leadership lost", extra={"identity": self._identity, "holder": self.holder})

    async def release(self) -> None:
        """Release the Lease, so that another process can lead immediately. Best effort."""
        record = self._seen.record if self._seen else None
        self._leadership.end()
        if record is None or record.holder != self._identity:
            return
        try:
            await self._leases.replace(replace(record, holder="", duration=1))
        except KubeError as error:
            logger.warning("lease not released", extra={"error": str(error)})

    async def _try(self) -> bool:
        """One round. True if this process holds the Lease afterwards. Kubernetes errors mean no."""
        try:
            if self.leading and self._seen is not None and self.holder == self._identity:
                # client-go's fast path: no other process writes a held Lease, so it is not read.
                record = self._seen.record
            else:
                record = await self._read()
            self._seen = observe(self._seen, record, self._clock.monotonic())
            started = self._clock.monotonic()
            if record is not None:
                self._last = record
            match decide(self._seen, self._identity, started):
                case Step.WAIT:
                    return False
                case Step.CREATE:
                    written = await self._leases.create(self._mine(self._new(), taking=True))
                case Step.TAKE:
                    assert record is not None
                    written = await self._leases.replace(self._mine(record, taking=True))
                case Step.RENEW:
                    assert record is not None
                    written = await self._leases.replace(self._mine(record, taking=False))
        except (AlreadyExists, Conflict):
            self._seen = None if self._seen is None else replace(self._seen, record=None)
            return await self._look()
        except NotFound:
            # The Lease was deleted: the next round creates it again, with its annotations.
            self._seen = None
            return False
        except KubeError as error:
            logger.warning("lease not reached", extra={"error": str(error)})
            return False
        self._seen = Observation(written, self._clock.monotonic())
        # Counted from before the request, so that a late answer does not prolong the leadership.
        self._leadership.extend(started + RENEW_DEADLINE)
        return True

    async def _look(self) -> bool:
        """Another process wrote the Lease: read its holder. Always False."""
        try:
            self._seen = observe(self._seen, await self._read(), self._clock.monotonic())
        except KubeError as error:
            logger.warning("lease not reached", extra={"error": str(error)})
        return False

    async def _read(self) -> LeaseRecord | None:
        try:
            return await self._leases.get()
        except NotFound:
            return None

    def _new(self) -> LeaseRecord:
        return LeaseRecord(taint_keys=self._last.taint_keys, gate_key=self._last.gate_key)

    def _mine(self, record: LeaseRecord, *, taking: bool) -> LeaseRecord:
        now = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return replace(
            record,
            holder=self._identity,
            duration=LEASE_SECONDS,
            renew_time=now,
            acquire_time=now if taking else record.acquire_time,
            transitions=record.transitions + (1 if taking and record.version else 0),
        )
