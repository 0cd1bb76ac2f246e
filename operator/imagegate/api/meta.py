"""Types that the kinds of `imagegate.dev` share with each other and with Kubernetes' own kinds."""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from imagegate.api import cel

GROUP: Final = "imagegate.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

MAX_NAMESPACE: Final = 63
MAX_LABEL_VALUE: Final = 63
MAX_NAME: Final = 253
MAX_QUALIFIED_NAME: Final = MAX_NAME + 1 + 63

_REQUIREMENT_MESSAGE: Final = (
    "operators In and NotIn need at least one entry in values, Exists and DoesNotExist take none"
)


class ApiModel(BaseModel):
    """Base of every API type: immutable, with camelCase names in JSON and snake_case names here.

    Unknown fields are ignored, so that an older operator can read what a newer operator wrote.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="ignore",
        frozen=True,
    )


DnsLabel = Annotated[
    str,
    Field(max_length=MAX_NAMESPACE),
    cel.matching(
        cel.DNS_LABEL,
        "is not a DNS label: use lowercase letters, digits and '-', a letter or digit at both ends",
    ),
]
_NOT_QUALIFIED: Final = (
    "is not a qualified name: use [DNS subdomain/]name, the name of at most 63 letters, digits,"
    " '-', '_' and '.', a letter or digit at both ends"
)
QualifiedName = Annotated[
    str,
    Field(max_length=MAX_QUALIFIED_NAME),
    cel.matching(cel.QUALIFIED_NAME, _NOT_QUALIFIED),
]
SecretName = Annotated[
    str,
    Field(max_length=MAX_NAME),
    cel.matching(
        cel.DNS_SUBDOMAIN,
        "is not the name of a Secret: use lowercase letters, digits, '-' and '.', a letter or digit"
        " at both ends",
    ),
]
DaemonSetName = Annotated[
    str,
    Field(max_length=MAX_NAME),
    cel.matching(
        cel.DNS_SUBDOMAIN,
        "is not the name of a DaemonSet: use lowercase letters, digits, '-' and '.', a letter or"
        " digit at both ends",
    ),
]
LabelValue = Annotated[
    str,
    Field(max_length=MAX_LABEL_VALUE),
    cel.matching(
        cel.LABEL_VALUE,
        "is not a label value: use letters, digits, '-', '_' and '.', a letter or digit at both"
        " ends",
    ),
]

Sentence = Annotated[str, Field(max_length=1024)]
"""Text for people in a status. The writer cuts it to this length."""


ApiVersion = Annotated[
    str,
    Field(
        max_length=MAX_NAME,
        description="APIVersion defines the versioned schema of this representation of an object.",
    ),
]
Kind = Annotated[
    str,
    Field(
        max_length=MAX_NAME,
        description="Kind is a string value representing the REST resource this object represents.",
    ),
]


class ObjectMeta(ApiModel):
    """The part of metav1.ObjectMeta that the operator reads."""

    name: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: AwareDatetime | None = None
    deletion_timestamp: AwareDatetime | None = None
    finalizers: tuple[str, ...] = ()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The API server defines the schema of metadata, and allows no more than this in a CRD."""
        return {"type": "object"}


class LocalObjectReference(ApiModel):
    """A Secret in the puller namespace."""

    model_config = ConfigDict(json_schema_extra=cel.extensions(map_type="atomic"))

    name: SecretName = Field(description="Name of the Secret.")


class LabelSelectorRequirement(ApiModel):
    """A condition on one label. All conditions of a selector must hold."""

    model_config = ConfigDict(
        json_schema_extra=cel.extensions(
            cel.Rule(
                "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                _REQUIREMENT_MESSAGE,
                field=".values",
            )
        )
    )

    key: QualifiedName = Field(description="Key of the label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How the label is compared with `values`."
        " NotIn also holds for objects that do not have the label."
    )
    values: tuple[LabelValue, ...] = Field(
        default=(),
        max_length=32,
        description="Values for In and NotIn, at least one; none for Exists and DoesNotExist.",
    )

    @model_validator(mode="after")
    def _values_fit_operator(self) -> Self:
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            raise ValueError(_REQUIREMENT_MESSAGE)
        return self


def _check_label_keys(labels: Mapping[str, str]) -> None:
    for key in labels:
        if not re.fullmatch(cel.QUALIFIED_NAME, key):
            raise ValueError(f'"{key}" {_NOT_QUALIFIED}')


_IS_KEY: Final = f"k.matches({cel.literal(cel.QUALIFIED_NAME)})"
MatchLabels = Annotated[
    Mapping[str, LabelValue],
    Field(max_length=64),
    cel.Checked(
        cel.Rule(
            f"self.all(k, {_IS_KEY})",
            f"a key {_NOT_QUALIFIED}",
            explain=cel.quoting(f"self.filter(k, !{_IS_KEY})[0]", _NOT_QUALIFIED),
        ),
        _check_label_keys,
    ),
]


ShortDigests = Annotated[
    Mapping[str, Annotated[str, Field(max_length=160)]],
    Field(max_length=64),
]
"""Digests of images, by a hash of the reference."""


class LabelSelector(ApiModel):
    """A metav1.LabelSelector. An empty one selects everything."""

    model_config = ConfigDict(json_schema_extra=cel.extensions(map_type="atomic"))

    match_labels: MatchLabels = Field(
        default_factory=dict,
        description="Labels that must exist with exactly these values.",
    )
    match_expressions: tuple[LabelSelectorRequirement, ...] = Field(
        default=(),
        max_length=16,
        description="Conditions on labels. All of them, and all of `matchLabels`, must hold.",
    )


class Condition(ApiModel):
    """A metav1.Condition: one aspect of the state, and the time of its last change."""

    type: str = Field(
        min_length=1,
        max_length=316,
        description="Which aspect, in CamelCase.",
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: int | None = Field(
        default=None,
        ge=0,
        description="The `metadata.generation` that this condition is about.",
    )
    last_transition_time: AwareDatetime = Field(description="When `status` last changed.")
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="Why, in one CamelCase word, for programs.",
    )
    message: str = Field(
        max_length=32768,
        description="Why, in a sentence, for people; with the remedy where there is one.",
    )


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra=cel.extensions(list_type="map", list_map_keys=["type"]),
    ),
]
