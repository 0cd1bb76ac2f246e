"""CEL rules: what the API server itself checks, and the sentence that it answers with.

A refused object should never need the operator's log. So every rule says what was wrong, quoting
the value, and what to write instead; and it is the API server that evaluates it
(`x-kubernetes-validations`), not a webhook server that might be down.

The API server bounds the *estimated* cost of every rule when a CRD is created, from `maxLength`,
`maxItems` and `maxProperties`: that is why everything in these schemas has a limit. The expressions
keep to the functions that API servers have had since Kubernetes 1.30.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

DNS_LABEL: Final = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""RFC 1123 label, as namespaces are; the limit of 63 characters is not in it."""
DNS_SUBDOMAIN: Final = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""RFC 1123 subdomain, as the names of Secrets are; the limit of 253 characters is not in it."""
QUALIFIED_NAME: Final = (
    "^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
"""Key of a label or a taint: an optional DNS subdomain and "/", then at most 63 characters."""
LABEL_VALUE: Final = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
"""Value of a label, which may be empty; the limit of 63 characters is not in it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `x-kubernetes-validations`.

    `explain` is a CEL expression that makes the message. `message` is said when it cannot be
    evaluated, or when the value has a line break in it, which a message must not have.
    `field` is the path below the schema that the error shall name, such as `.retry.minSeconds`.
    """

    expression: str
    message: str
    explain: str | None = None
    field: str | None = None
    reason: Literal["FieldValueInvalid", "FieldValueForbidden"] | None = None

    def entry(self) -> dict[str, str]:
        """Give the rule as a CRD has it."""
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
    """Annotation of a field: `rule` at the API server, and `check`, its twin, on the read path.

    `check` gets a value of the field's type and raises ValueError; a rule about a change
    (`oldSelf`) has none, because one object does not show what it was before.
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
    """Make a validator of a check: the value stays as it is."""

    def validator(value: Any) -> Any:
        check(value)
        return value

    return validator


def matching(pattern: str, complaint: str) -> Checked:
    """Make the annotation of a string that has to match a pattern.

    `complaint` follows the quoted value in the message: `is not a label key: use …`.
    The pattern is anchored, and read by RE2 at the API server and by `re` here.
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
    """Give the CEL expression of a message: the value of `value` in quotes, and a complaint."""
    ending = literal(f'" {complaint}')
    return f"'\"' + {value} + {ending}"


def literal(text: str) -> str:
    """Quote a text as a CEL string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def extensions(*rules: Rule, **keywords: object) -> dict[str, Any]:
    """Give the `json_schema_extra` with these rules and further `x-kubernetes-…` keywords.

    A keyword is written `list_type="map"`.
    """
    extra: dict[str, Any] = {
        "x-kubernetes-" + name.replace("_", "-"): value for name, value in keywords.items()
    }
    if rules:
        extra["x-kubernetes-validations"] = [rule.entry() for rule in rules]
    return extra
