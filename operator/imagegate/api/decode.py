"""From an object of the API server to a model, or to one sentence saying what is wrong with it.

The API server has refused bad objects already. Every check is made here once more for an object
that got past it, because it was stored under another version of the CRD: what comes out needs no
further check.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from imagegate import errors
from imagegate.api import meta, v1alpha1

_Model = TypeVar("_Model", bound=meta.ApiModel)
_UNION_MEMBERS = ("int", "str")
_LONGEST_VALUE = 120


class InvalidObject(errors.ImagegateError):
    """An object that cannot be acted on; the text names the field and says what is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        """Path of the field, such as `spec.images[1].image`; empty for the whole object."""
        self.problem = problem
        """What is wrong, and what to write instead."""


def parse_prefetch(body: Mapping[str, Any]) -> v1alpha1.ImagePrefetch:
    """Read an ImagePrefetch. A status that cannot be read is None: it is the operator's to rewrite.

    Raises `InvalidObject`.
    """
    prefetch = _parse(v1alpha1.ImagePrefetch, _without_status(body))
    return prefetch.model_copy(
        update={"status": _parse_status(v1alpha1.ImagePrefetchStatus, body.get("status"))}
    )


def parse_node_gate(body: Mapping[str, Any]) -> v1alpha1.NodeGate:
    """Read a NodeGate. A status that cannot be read is None: it is the operator's to rewrite.

    Raises `InvalidObject`.
    """
    gate = _parse(v1alpha1.NodeGate, _without_status(body))
    return gate.model_copy(
        update={"status": _parse_status(v1alpha1.NodeGateStatus, body.get("status"))}
    )


def _without_status(body: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "status"}


def _parse_status(model: type[_Model], status: Any) -> _Model | None:
    if status is None:
        return None
    try:
        return _parse(model, status)
    except InvalidObject:
        return None


def _parse(model: type[_Model], body: Mapping[str, Any]) -> _Model:
    # By way of JSON, because only there does strict mean what it means to the API server: no "5"
    # for 5, but lists for tuples and text for times. `default` is for kopf's views of a body.
    try:
        return model.model_validate_json(json.dumps(body, default=dict), strict=True)
    except pydantic.ValidationError as error:
        first, *rest = error.errors(include_url=False)
        # pydantic also counts the valid entries of a list, so that one bad entry makes the list
        # around it too short: a consequence of the first problem is not a further one.
        further = [other for other in rest if other["loc"] != first["loc"][: len(other["loc"])]]
        problem = _problem(first)
        if further:
            problem += f" (and {len(further)} more)"
        raise InvalidObject(_path(first["loc"]), problem) from error


def _path(location: tuple[int | str, ...]) -> str:
    """Write a location as the API server does: `spec.images[1].image`."""
    if location and location[-1] in _UNION_MEMBERS:
        location = location[:-1]  # pydantic's name for a member of a union; no field is called so
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".")


def _problem(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "missing":
            return "this field is required"
        case "too_long":
            return f"the number of entries must be at most {error['ctx']['max_length']}"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            value = json.dumps(error["input"], default=str)
            if len(value) > _LONGEST_VALUE:
                value = value[: _LONGEST_VALUE - 1] + "…"
            return f"{error['msg']}, but this is {value}"
