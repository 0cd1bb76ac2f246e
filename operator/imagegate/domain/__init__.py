"""Facts about the cluster and the decisions taken on them.

Standard library only; no clock and no I/O. Every function takes facts and a time and returns
values, so the whole behaviour of the operator can be tested without a cluster.
"""
