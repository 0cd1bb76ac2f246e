"""The status of an ImagePrefetch and of the NodeGate: counts, conditions, a few failures.

1. `write`: the whole status.
2. `conditions` and `images`: its parts.
3. `bounds`: what is left out first when it is too large.

`tally` and `findings` are the facts; `patch` makes the merge patch that writes a status.
"""

from imagegate.domain.status.bounds import MAX_CONDITION, MAX_MESSAGE, MAX_STATUS, size
from imagegate.domain.status.conditions import MAX_FOUND, Condition, merge_conditions
from imagegate.domain.status.findings import Findings
from imagegate.domain.status.patch import changes
from imagegate.domain.status.tally import Failure, Tally
from imagegate.domain.status.write import dry_run_status, prefetch_status

__all__ = [
    "MAX_CONDITION",
    "MAX_FOUND",
    "MAX_MESSAGE",
    "MAX_STATUS",
    "Condition",
    "Failure",
    "Findings",
    "Tally",
    "changes",
    "dry_run_status",
    "merge_conditions",
    "prefetch_status",
    "size",
]
