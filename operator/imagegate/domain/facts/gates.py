"""The NodeGate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gate:
    """The NodeGate."""

    uid: str
    version: int = field(compare=False)
    taint_key: str = ""
    suspend: bool = False
    silence: float = 300.0
    deleting: bool = False
    status: Mapping[str, object] = field(default_factory=dict, compare=False)
    created: str = ""
