"""`imagegate.dev/v1alpha1`: ImagePrefetch and NodeGate in their API form.

The models are the only source: `imagegate.api.crd` generates the CRDs from them. `kubectl explain`
shows the descriptions; the API server fills in the defaults and enforces the limits. To read an
object, use `imagegate.api.decode`, which also makes the checks that CEL cannot.
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
from imagegate.api.v1alpha1.repositories import Repository

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
    "Repository",
    "Retention",
    "Retry",
    "Rollout",
]
