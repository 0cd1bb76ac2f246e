"""ImagePrefetch: images that nodes should hold before pods are scheduled there."""

import re
from typing import ClassVar, Final

from pydantic import ConfigDict, Field, field_validator

from imagegate.api import cel, meta
from imagegate.api.v1alpha1.imageprefetch_spec import ImagePrefetchSpec
from imagegate.api.v1alpha1.imageprefetch_status import ImagePrefetchStatus

_NAME: Final = (
    "is not a name for an ImagePrefetch, which becomes part of the node label"
    " cached.imagegate.dev/NAME: use at most 63 lowercase letters, digits and '-', a letter or"
    " digit at both ends"
)


class ImagePrefetch(meta.ApiModel):
    """ImagePrefetch names images, and nodes that pull them before pods are scheduled there."""

    model_config = ConfigDict(
        json_schema_extra=cel.extensions(
            cel.Rule(
                f"self.metadata.name.matches('{cel.DNS_LABEL}') && size(self.metadata.name) <= 63",
                f"metadata.name {_NAME}",
                explain="'metadata.name ' + " + cel.quoting("self.metadata.name", _NAME),
            )
        )
    )
    plural: ClassVar[str] = "imageprefetches"

    api_version: meta.ApiVersion = meta.API_VERSION
    kind: meta.Kind = "ImagePrefetch"
    metadata: meta.ObjectMeta
    spec: ImagePrefetchSpec = Field(description="Which images, which nodes, and how.")
    status: ImagePrefetchStatus | None = Field(
        default=None, description="State that the operator observed."
    )

    @field_validator("metadata")
    @classmethod
    def _name_is_label(cls, metadata: meta.ObjectMeta) -> meta.ObjectMeta:
        name = metadata.name
        if len(name) > meta.MAX_LABEL_VALUE or not re.fullmatch(cel.DNS_LABEL, name):
            raise ValueError(f'"{name}" {_NAME}')
        return metadata
