"""The names that Imagegate writes into the cluster."""

from __future__ import annotations

GROUP = "imagegate.dev"
LABEL_PREFIX = f"cached.{GROUP}/"
"""Prefix of the node labels that record which target of which ImagePrefetch a node holds."""
OBSERVED = f"{GROUP}/observed"
"""Node annotation ``<node uid>/<boot id>``: the machine and boot for which the labels are valid."""
PREFETCH_LABEL = f"{GROUP}/prefetch"
FINALIZER = f"{GROUP}/cleanup"
TAINT_VALUE = "pending"
