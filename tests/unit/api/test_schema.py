"""The rewriter of pydantic's JSON schema into the structural schema of a CRD."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from pydantic import ConfigDict, Field

from imagegate.api import cel, meta, schema

Short = Annotated[str, Field(max_length=9)]


class Inner(meta.ApiModel):
    """The inner
    one."""

    some_text: Short = "x"
    many: tuple[Short, ...] = Field(default=(), max_length=3)


class Known(meta.ApiModel):
    model_config = ConfigDict(
        json_schema_extra=cel.extensions(cel.Rule("true", "never", field=".flag"))
    )

    optional: Short | None = None
    amount: Annotated[int | str, cel.Checked(cel.Rule("self != 0", "not 0"))] = "10%"
    one: Literal["One"]
    two: Literal["A", "B"] = "A"
    inner: Inner = Field(default=Inner(), description="Wins over   the docstring.")
    items: tuple[Inner, ...] = Field(
        max_length=2, json_schema_extra=cel.extensions(list_type="set")
    )
    labels: Mapping[str, Short] = Field(default={}, max_length=4)
    flag: bool = False


def test_supported_keywords_are_rewritten() -> None:
    inner = {
        "type": "object",
        "description": "The inner one.",
        "properties": {
            "someText": {"type": "string", "maxLength": 9, "default": "x"},
            "many": {"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 9}},
        },
    }

    assert schema.structural(Known) == {
        "type": "object",
        "required": ["one", "items"],
        "x-kubernetes-validations": [{"rule": "true", "message": "never", "fieldPath": ".flag"}],
        "properties": {
            "optional": {"type": "string", "maxLength": 9},
            "amount": {
                "x-kubernetes-int-or-string": True,
                "default": "10%",
                "x-kubernetes-validations": [{"rule": "self != 0", "message": "not 0"}],
            },
            "one": {"type": "string", "enum": ["One"]},
            "two": {"type": "string", "enum": ["A", "B"], "default": "A"},
            "inner": {
                **inner,
                "description": "Wins over the docstring.",
                "default": {"someText": "x"},
            },
            "items": {
                "type": "array",
                "maxItems": 2,
                "items": inner,
                "x-kubernetes-list-type": "set",
            },
            "labels": {
                "type": "object",
                "maxProperties": 4,
                "additionalProperties": {"type": "string", "maxLength": 9},
                "default": {},
            },
            "flag": {"type": "boolean", "default": False},
        },
    }


class Recursive(meta.ApiModel):
    child: "Recursive | None" = None


class Closed(meta.ApiModel):
    model_config = ConfigDict(extra="forbid")

    flag: bool


def field(annotation: Any) -> type[meta.ApiModel]:
    return type(
        "Model",
        (meta.ApiModel,),
        {"__annotations__": {"field_name": annotation}, "__module__": __name__},
    )


@pytest.mark.parametrize(
    ("annotation", "problem"),
    [
        (str, r"\.fieldName: maxLength is missing: give the field a max_length"),
        (tuple[Short, ...], "maxItems is missing"),
        (Mapping[str, Short], "maxProperties is missing"),
        (Annotated[tuple[str, ...], Field(max_length=1)], r"\.fieldName\[\]: maxLength is missing"),
        (Annotated[Mapping[str, str], Field(max_length=1)], r"\.fieldName\{\}: maxLength"),
        (Annotated[int, Field(gt=0)], "exclusiveMinimum is not structural: use ge"),
        (Annotated[int, Field(multiple_of=2)], "multipleOf is not structural: decide"),
        (int | bool, "anyOf is not structural"),
        (Short | None | int | bool, "anyOf is not structural"),
        (Annotated[set[Short], Field(max_length=3)], "uniqueItems is not structural: use a tuple"),
        (tuple[int, int], "prefixItems is not structural"),
        (Annotated[Mapping[Short, Short], Field(max_length=3)], "propertyNames is not structural"),
        (Annotated[Mapping[str, Any], Field(max_length=3)], "additionalProperties is not"),
        (Any, "it has no type"),
        (Recursive, "Recursive contains itself"),
        (Annotated[int, Field(json_schema_extra={"readOnly": True})], "readOnly is not"),
    ],
)
def test_unsupported_keyword_is_rejected_with_the_remedy(annotation: Any, problem: str) -> None:
    with pytest.raises(schema.NotStructural, match=problem):
        schema.structural(field(annotation))


def test_closed_model_is_left_to_pruning() -> None:
    assert "additionalProperties" not in schema.structural(Closed)
