"""Turns a pydantic model into a structural schema, the JSON schema of CustomResourceDefinitions.

A structural schema (apiextensions.k8s.io/v1) is a subset of JSON schema: a type at every node, no
`$ref`, no `title`, no `const`, no tuples, no `null`. Other output of pydantic is rewritten:

    X | None                  X, not required; an absent field means None
    int | str                 x-kubernetes-int-or-string
    const                     enum
    $defs and $ref            the definition replaces the $ref; keywords beside a $ref win
    default: null, []         removed: an absent field means the same, and causes no diffs
    additionalProperties no   removed: the API server prunes unknown fields, with a warning

Any other keyword must be on a list of known keywords, or is an error, so that neither a new version
of pydantic nor a new field can add anything to a CRD that was not reviewed.
A field without a limit is an error, too, because the API server would then estimate the cost of
CEL rules as too high (see `imagegate.api.cel`).
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from imagegate import errors

Schema = dict[str, Any]

_COPIED: Final = frozenset(
    {
        "enum",
        "format",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "required",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-map-type",
        "x-kubernetes-validations",
    }
)
_ONE_OF: Final = "make the alternatives optional fields, and say by CEL that exactly one is set"
_REMEDIES: Final = {
    "anyOf": "only X | None and int | str are known; make the alternatives fields of their own",
    "oneOf": _ONE_OF,
    "discriminator": _ONE_OF,
    "exclusiveMinimum": "use ge instead of gt",
    "exclusiveMaximum": "use le instead of lt",
    "prefixItems": "use a model instead of a tuple of fixed length",
    "propertyNames": "leave the key a plain str, and check keys by CEL on the map",
    "uniqueItems": "use a tuple with x-kubernetes-list-type: set",
}
_SELF_LIMITED_FORMATS: Final = frozenset({"date-time"})
_LIMITS: Final = {"string": "maxLength", "array": "maxItems"}


class NotStructural(errors.ImagegateError):
    """The model has no structural schema. The text names the field, the problem and the remedy."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path or 'the model'}: {problem}")


def structural(model: type[BaseModel]) -> Schema:
    """Make the structural schema of a model, with the fields' names in JSON.

    Raises `NotStructural`.
    """
    raw = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    return _Rewriter(raw.get("$defs", {})).node(raw, "", ())


class _Generator(GenerateJsonSchema):
    """Rewrites None, unions and literals, as long as pydantic's types are known."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def union_schema(self, schema: core_schema.UnionSchema) -> JsonSchemaValue:
        union = super().union_schema(schema)
        types = [choice.get("type") for choice in union.get("anyOf", ())]
        if sorted(types, key=str) == ["integer", "string"]:
            return {"x-kubernetes-int-or-string": True}
        return union

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        literal = super().literal_schema(schema)
        if "const" in literal:
            literal["enum"] = [literal.pop("const")]
        return literal


class _Rewriter:
    """Walks a schema once. Every keyword is either known or an error."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def node(self, schema: Schema, path: str, inside: tuple[str, ...]) -> Schema:
        """Rewrite one node; `inside` names the definitions that contain it."""
        schema, inside = self._resolved(schema, path, inside)
        result: Schema = {}
        for keyword, value in schema.items():
            match keyword:
                case "$defs" | "title":
                    pass
                case "description":
                    result[keyword] = " ".join(value.split())
                case "default":
                    result |= _default(value)
                case "properties":
                    result[keyword] = {
                        name: self.node(child, f"{path}.{name}", inside)
                        for name, child in value.items()
                    }
                case "items":
                    result[keyword] = self.node(value, f"{path}[]", inside)
                case "additionalProperties" if value is False:
                    pass
                case "additionalProperties" if isinstance(value, dict):
                    result[keyword] = self.node(value, f"{path}{{}}", inside)
                case _ if keyword in _COPIED:
                    result[keyword] = value
                case _:
                    remedy = _REMEDIES.get(keyword, "decide how the CRD expresses it")
                    raise NotStructural(path, f"{keyword} is not structural: {remedy}")
        _require_limits(result, path)
        return result

    def _resolved(
        self, schema: Schema, path: str, inside: tuple[str, ...]
    ) -> tuple[Schema, tuple[str, ...]]:
        """Replace references by their definitions until no reference is left."""
        while "$ref" in schema:
            name = schema["$ref"].removeprefix("#/$defs/")
            if name in inside:
                raise NotStructural(path, f"{name} contains itself, which a CRD cannot express")
            inside = (*inside, name)
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**self._definitions[name], **beside}
        return schema, inside


def _default(default: Any) -> Schema:
    """Keep a default unless an absent field means the same.

    The default of an object is written in full, although the API server would fill in `{}`, because
    the API server evaluates the object's CEL rules on the default as it is written here.
    """
    if isinstance(default, dict):
        default = {name: value for name, value in default.items() if not _means_absent(value)}
    return {} if _means_absent(default) and default != {} else {"default": default}


def _means_absent(default: Any) -> bool:
    return default is None or default in ([], {})


def _require_limits(schema: Schema, path: str) -> None:
    """Refuse a string, list or map of unlimited size."""
    kind = schema.get("type")
    if "enum" in schema or schema.get("format") in _SELF_LIMITED_FORMATS:
        return
    limit = "maxProperties" if "additionalProperties" in schema else _LIMITS.get(str(kind))
    if limit is not None and limit not in schema:
        raise NotStructural(path, f"{limit} is missing: give the field a max_length")
    if kind is None and "x-kubernetes-int-or-string" not in schema:
        raise NotStructural(path, "it has no type: a CRD cannot express Any")
