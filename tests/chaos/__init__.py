"""Faults on the real cluster, and a witness that is not the operator. See docs/reliability.md."""
