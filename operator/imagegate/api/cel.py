"""CEL rules: the checks that the API server makes, and the messages of their refusals.

Every message quotes the wrong value and says what to write instead, so that a user never needs the
operator's log to understand a refusal. The API server evaluates the rules
(`x-kubernetes-validations`), because a webhook server might be down.

When a CRD is created, the API server limits the *estimated* cost of every rule. It estimates the
cost from `maxLength`, `maxItems` and `maxProperties`: therefore every string, list and map in these
schemas has a limit. The expressions use only functions that API servers have had since
Kubernetes 1.30.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

DNS_LABEL: Final = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""RFC 1123 label, such as the name of a namespace. The pattern does not check the limit of 63
characters."""
DNS_SUBDOMAIN: Final = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""RFC 1123 subdomain, such as the name of a Secret. The pattern does not check the limit of 253
characters."""
API_VERSION: Final = f"{DNS_SUBDOMAIN[:-1]}/{DNS_LABEL[1:]}"
"""API group and version of a kind. The core group, which has no name, does not match."""
QUALIFIED_NAME: Final = (
    "^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
"""Key of a label or a taint: an optional DNS subdomain and "/", then at most 63 characters."""
LABEL_VALUE: Final = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
"""Value of a label, which may be empty. The pattern does not check the limit of 63 characters."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `x-kubernetes-validations`.

    `explain` is a CEL expression whose result is the message. The API server uses `message` instead
    if `explain` cannot be evaluated or its result contains a line break, which is not allowed.
    `field` is the path that the error names, relative to the schema, such as `.retry.minSeconds`.
    """

    expression: str
    message: str
    explain: str | None = None
    field: str | None = None
    reason: Literal["FieldValueInvalid", "FieldValueForbidden"] | None = None

    def entry(self) -> dict[str, str]:
        """Return the rule in the form of a CRD."""
        entry = {
            "rule": self.expression,
            "message": self.message,
            "messageExpression": self.explain,
            "fieldPath": self.field,
            "reason": self.reason,
        }
        return {key: value for key, value in entry.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Checked:
    """Annotation of a field. The API server evaluates `rule`; the operator runs `check`, which is
    equivalent, when it reads an object.

    `check` gets a value of the field's type and raises ValueError. A rule about a change
    (`oldSelf`) has no `check`, because the object does not contain its previous value.
    """

    rule: Rule
    check: Callable[[Any], object] | None = None

    def __get_pydantic_core_schema__(
        self, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Run `check` after the field's own validation."""
        inner = handler(source)
        if self.check is None:
            return inner
        return core_schema.no_info_after_validator_function(_keeping(self.check), inner)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add `rule` to the field's schema."""
        json_schema = handler(schema)
        json_schema.setdefault("x-kubernetes-validations", []).append(self.rule.entry())
        return json_schema


def _keeping(check: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Turn a check into a validator that returns the value unchanged."""

    def validator(value: Any) -> Any:
        check(value)
        return value

    return validator


def matching(pattern: str, complaint: str) -> Checked:
    """Make the annotation of a string that must match a pattern.

    `complaint` follows the quoted value in the message: `is not a label key: use …`.
    The pattern must be anchored. The API server evaluates it with RE2, the operator with `re`.
    """
    compiled = re.compile(pattern)

    def check(value: str) -> None:
        if not compiled.fullmatch(value):
            raise ValueError(f"{json.dumps(value)} {complaint}")

    return Checked(
        Rule(
            expression=f"self.matches({literal(pattern)})",
            message=f"the value {complaint}",
            explain=quoting("self", complaint),
        ),
        check,
    )


def quoting(value: str, complaint: str) -> str:
    """Return the CEL expression of a message: the result of the CEL expression `value` in quotes,
    then the complaint.
    """
    ending = literal(f'" {complaint}')
    return f"'\"' + {value} + {ending}"


def literal(text: str) -> str:
    """Quote a text as a CEL string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def literals(texts: Iterable[str]) -> str:
    """Write texts as a list in CEL."""
    return f"[{', '.join(map(literal, texts))}]"


def extensions(*rules: Rule, **keywords: object) -> dict[str, Any]:
    """Return a `json_schema_extra` with these rules and further `x-kubernetes-…` keywords.

    The argument `list_type="map"` sets `x-kubernetes-list-type`.
    """
    extra: dict[str, Any] = {
        "x-kubernetes-" + name.replace("_", "-"): value for name, value in keywords.items()
    }
    if rules:
        extra["x-kubernetes-validations"] = [rule.entry() for rule in rules]
    return extra
