"""What makes the gate hold joining nodes: its NodeGate, and the policy that taints at admission."""

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

        A deleted NodeGate opens the gate for good, or a restart of the operator would close it
        again. After the chart's key was changed there is no NodeGate that anybody could have
        deleted for that reason.
        """
        await self._keys.load()
        key = self._settings.gate_taint_key
        gate = await self._gates.get()
        if gate is None and self._keys.created_with == key:
            logger.warning("no NodeGate: somebody deleted it, and no node is held")
            return
        if gate is None:
            gate = await self._gates.create(
                taint_key=key,
                suspend=self._settings.gate_suspend,
                silence_seconds=self._settings.gate_silence_seconds,
            )
        self._keys.see(gate)
        # After the creation: an operator that is killed in between finds the NodeGate and goes on.
        await self._keys.record(gate.taint_key, created_with=key)

    async def look_for_policy(self) -> None:
        """No watch tells whether the policy exists."""
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
                return True, "External", "joining nodes are tainted by somebody else"
