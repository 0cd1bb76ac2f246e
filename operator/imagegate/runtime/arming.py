"""Provides what the gate needs to hold joining nodes: its NodeGate, and the admission policy."""

from __future__ import annotations

import logging

from imagegate.errors import ImagegateError
from imagegate.kube.gates import Gates
from imagegate.runtime.taint_keys import TaintKeys
from imagegate.settings import GateSource, Settings

logger = logging.getLogger(__name__)


class Arming:
    def __init__(self, gates: Gates, keys: TaintKeys, settings: Settings) -> None:
        self._gates = gates
        self._keys = keys
        self._settings = settings
        self._policy_missing = False

    async def provide_gate(self) -> None:
        """Create the NodeGate once for each taint key that the chart has had.

        A deleted NodeGate opens the gate permanently, so a restart of the operator does not create
        it again. After a change of the chart's key it is created, because no NodeGate with the new
        key was deleted.
        """
        await self._keys.load()
        key = self._settings.gate_taint_key
        gate = await self._gates.get()
        if gate is None and self._keys.created_with == key:
            logger.warning("the NodeGate was deleted: no node is held")
            return
        if gate is None:
            gate = await self._gates.create(
                taint_key=key,
                suspend=self._settings.gate_suspend,
                silence_seconds=self._settings.gate_silence_seconds,
            )
        self._keys.see(gate)
        # After the creation, because an operator that is killed in between then finds the NodeGate.
        await self._keys.record(gate.taint_key, created_with=key)

    async def look_for_policy(self) -> None:
        """Check whether the policy exists, because no watch reports it."""
        if self._settings.gate_source is not GateSource.POLICY:
            return
        try:
            exists = await self._gates.policy_exists(self._settings.gate_policy)
            self._policy_missing = not exists
        except ImagegateError as error:
            logger.warning("policy not looked up", extra={"error": str(error)})

    def armed(self) -> tuple[bool, str, str]:
        """The status, reason and message of the NodeGate's condition Armed."""
        match self._settings.gate_source:
            case GateSource.POLICY if self._policy_missing:
                return (
                    False,
                    "PolicyMissing",
                    f"MutatingAdmissionPolicy {self._settings.gate_policy} is not there: joining"
                    " nodes are not held; install the chart again",
                )
            case GateSource.POLICY:
                return True, "Armed", "joining nodes are tainted at admission"
            case GateSource.WATCH:
                return True, "BestEffort", "joining nodes are tainted when they are seen"
            case GateSource.NONE:
                return True, "External", "joining nodes are tainted by another component"
