"""What the operator knows of the cluster: small frozen records, parsed once at the edge.

Times are seconds since the epoch. ``version`` is the object's resourceVersion as an integer; it
orders two sightings of one object and takes no part in comparing them, so that a kubelet's
heartbeat, which changes nothing else, is not a change.

Import facts from here; each module has one kind of them.
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
    RefreshSpec,
    Requirement,
    RetrySpec,
    RolloutSpec,
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
    "Pod",
    "Prefetch",
    "RefreshSpec",
    "Refreshed",
    "Requirement",
    "RetrySpec",
    "RolloutSpec",
    "Taint",
]
