"""The decision about one node, which ends in at most one patch of it.

The steps, in the order of the node's life. A step calls only steps further down this list:

1. `plan`: decides, and collects the conclusions of all steps.
2. `shares`: each prefetch that matches the node: which images are missing, which pods to create.
3. `release`: whether the gate taint stays.
4. `patch`: the labels, the annotation and the taints that change.
5. `hold`: whether the node gets the gate taint.

`view` has the facts and the result. Pure and total: the same facts and the same time give the same
plan.
"""

from imagegate.domain.node.plan import decide
from imagegate.domain.node.view import Decided, NodePlan, NodeView

__all__ = ["Decided", "NodePlan", "NodeView", "decide"]
