"""The facts that the operator knows about the cluster: small frozen records, parsed once at the
edge.

Times are seconds since the epoch. ``version`` is the object's resourceVersion as an integer. It
orders two versions of one object. Equality ignores it, because a heartbeat of a kubelet changes
nothing else and must not count as a change.

Import facts from here; each module defines one kind of facts.
"""

from imagegate.domain.facts.gates import Gate
from imagegate.domain.facts.groups import IMAGES_PER_POD, Group
from imagegate.domain.facts.images import Image, ImageFacts, ImageSize, LayerFacts, Refreshed
from imagegate.domain.facts.names import (
    FINALIZER,
    GROUP,
    LABEL_PREFIX,
    OBSERVED,
    PREFETCH_LABEL,
    TAINT_VALUE,
)
from imagegate.domain.facts.nodes import Listed, Node, NodeState, Taint
from imagegate.domain.facts.pods import Attempts, Pod
from imagegate.domain.facts.prefetches import POLICY_VIOLATION, Prefetch
from imagegate.domain.facts.specs import (
    DaemonSetRef,
    GateMode,
    GatePolicy,
    GateSpec,
    ImageSource,
    OnReboot,
    Operator,
    Place,
    RefreshSpec,
    RepositorySpec,
    Requirement,
    RetrySpec,
    RolloutSpec,
    TagOrder,
    TagPolicy,
)

__all__ = [
    "FINALIZER",
    "GROUP",
    "IMAGES_PER_POD",
    "LABEL_PREFIX",
    "OBSERVED",
    "POLICY_VIOLATION",
    "PREFETCH_LABEL",
    "TAINT_VALUE",
    "Attempts",
    "DaemonSetRef",
    "Gate",
    "GateMode",
    "GatePolicy",
    "GateSpec",
    "Group",
    "Image",
    "ImageFacts",
    "ImageSize",
    "ImageSource",
    "LayerFacts",
    "Listed",
    "Node",
    "NodeState",
    "OnReboot",
    "Operator",
    "Place",
    "Pod",
    "Prefetch",
    "RefreshSpec",
    "Refreshed",
    "RepositorySpec",
    "Requirement",
    "RetrySpec",
    "RolloutSpec",
    "TagOrder",
    "TagPolicy",
    "Taint",
]
