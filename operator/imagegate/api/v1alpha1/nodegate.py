"""NodeGate: the taint that holds joining nodes, and the heartbeat that keeps it armed."""

import re
from typing import Annotated, ClassVar, Final

from pydantic import AwareDatetime, ConfigDict, Field, field_validator

from imagegate.api import cel, meta

NAME: Final = "default"
"""The only name that a NodeGate may have."""

DEFAULT_TAINT_KEY: Final = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
"""By this prefix cluster-autoscaler knows, without a flag, that the taint is temporary."""

_WRONG_NAME: Final = (
    "a cluster has one NodeGate: name it 'default'; to change the gate, edit the one that is there"
)

_FOREIGN: Final = "^((node|node-role|node[.]cloudprovider)[.]kubernetes[.]io|karpenter[.]sh)/"
_FOREIGN_COMPLAINT: Final = (
    "is a taint of Kubernetes itself or of Karpenter, which Imagegate must not remove:"
    " use a key of your own"
)


def _check_not_foreign(key: str) -> None:
    if re.match(_FOREIGN, key):
        raise ValueError(f'"{key}" {_FOREIGN_COMPLAINT}')


TaintKey = Annotated[
    meta.QualifiedName,
    cel.Checked(
        cel.Rule(
            f"!self.matches({cel.literal(_FOREIGN)})",
            f"the key {_FOREIGN_COMPLAINT}",
            explain=cel.quoting("self", _FOREIGN_COMPLAINT),
        ),
        _check_not_foreign,
    ),
    cel.Checked(
        cel.Rule(
            "self == oldSelf",
            "taintKey cannot be changed, because nodes are held with the old key: delete the"
            " NodeGate, which releases every held node, and create it with the new key",
        )
    ),
]


class NodeGateSpec(meta.ApiModel):
    """How the gate behaves. A value of the Helm chart selects its nodes."""

    taint_key: TaintKey = Field(
        default=DEFAULT_TAINT_KEY,
        description="Key of the taint that holds a joining node (value `pending`, effect"
        " NoSchedule). Cannot be changed. With Karpenter, list the taint in `startupTaints`.",
    )
    suspend: bool = Field(
        default=False,
        description="The kill switch: true releases every held node and holds no further one.",
    )
    silence_seconds: int = Field(
        default=300,
        ge=30,
        le=86400,
        description="How long the operator may be silent, in seconds. When `status.heartbeat` is"
        " older than this, joining nodes are no longer tainted. With less than 60, the gate may"
        " open while another replica takes over from a failed leader.",
    )


class NodeGateStatus(meta.ApiModel):
    """State that the operator observed. No field has a default, as in ImagePrefetchStatus."""

    heartbeat: AwareDatetime | None = Field(
        default=None, description="When the leader was last alive; renewed every minute."
    )
    armed: bool | None = Field(default=None, description="Whether joining nodes are held.")
    held: int | None = Field(default=None, ge=0, description="Nodes that are held now.")
    conditions: meta.Conditions = Field(default=(), description="Armed: joining nodes are held.")


class NodeGate(meta.ApiModel):
    """NodeGate holds joining nodes with a taint until they hold their images.

    A cluster has one NodeGate, named `default`. Its deletion releases every held node.
    """

    model_config = ConfigDict(
        json_schema_extra=cel.extensions(
            cel.Rule(f"self.metadata.name == '{NAME}'", f"metadata.name: {_WRONG_NAME}")
        )
    )
    plural: ClassVar[str] = "nodegates"

    api_version: meta.ApiVersion = meta.API_VERSION
    kind: meta.Kind = "NodeGate"
    metadata: meta.ObjectMeta
    spec: NodeGateSpec = Field(default=NodeGateSpec(), description="How the gate behaves.")
    status: NodeGateStatus | None = Field(
        default=None, description="State that the operator observed."
    )

    @field_validator("metadata")
    @classmethod
    def _name_is_default(cls, metadata: meta.ObjectMeta) -> meta.ObjectMeta:
        if metadata.name != NAME:
            raise ValueError(_WRONG_NAME)
        return metadata
