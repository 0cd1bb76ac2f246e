"""Benchmarks of the operator: CPU time, memory and requests for each node."""
