"""`imagegate.dev/v1alpha1`: ImagePrefetch and NodeGate as they are on the wire.

The models are the one source. `imagegate.api.crd` makes the CRDs from them: a description here is
what `kubectl explain` says, a default here is what the API server fills in, a limit here is what it
enforces. To read an object use `imagegate.api.decode`, which also checks what CEL cannot.
"""

from imagegate.api.v1alpha1.imageprefetch import ImagePrefetch
from imagegate.api.v1alpha1.imageprefetch_spec import (
    DaemonSetReference,
    Disk,
    Gate,
    Image,
    ImagePrefetchSpec,
    ImageSource,
    Refresh,
    Retention,
    Retry,
    Rollout,
)
from imagegate.api.v1alpha1.imageprefetch_status import (
    ImagePrefetchStatus,
    ImageStatus,
    NodeCounts,
    PullFailure,
)
from imagegate.api.v1alpha1.images import ImageReference
from imagegate.api.v1alpha1.nodegate import NodeGate, NodeGateSpec, NodeGateStatus

__all__ = [
    "DaemonSetReference",
    "Disk",
    "Gate",
    "Image",
    "ImagePrefetch",
    "ImagePrefetchSpec",
    "ImagePrefetchStatus",
    "ImageReference",
    "ImageSource",
    "ImageStatus",
    "NodeCounts",
    "NodeGate",
    "NodeGateSpec",
    "NodeGateStatus",
    "PullFailure",
    "Refresh",
    "Retention",
    "Retry",
    "Rollout",
]
