"""Faults on the real cluster, and a witness independent of the operator: docs/reliability.md."""
