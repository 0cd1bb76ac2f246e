"""``imagegate simulate``: a rollout in virtual time, to compare ways to roll out an image.

Which nodes may pull, and when a failed pull is tried again, is decided by the operator's own code:
the ledger's entry, `domain.rollout`, `domain.throttle` and `domain.retry` (`rollout`). This package
adds only the world in which these decisions have an effect: nodes, mirrors, a registry and their
bandwidths (`world`, `network`, `pulls`).
"""
