"""Turns an object of the API server into a model, or into a sentence that says what is wrong.

The API server has already refused invalid objects. Every check is repeated here, because an object
may have been stored under another version of the CRD. A decoded model needs no further check.
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
    """An invalid object; the text names the field and says what is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        """Path of the field, such as `spec.images[1].image`; empty for the whole object."""
        self.problem = problem
        """What is wrong, and what to write instead."""


def parse_prefetch(body: Mapping[str, Any]) -> v1alpha1.ImagePrefetch:
    """Read an ImagePrefetch. An unreadable status becomes None, because the operator rewrites it.

    Raises `InvalidObject`.
    """
    prefetch = _parse(v1alpha1.ImagePrefetch, _without_status(body))
    return prefetch.model_copy(
        update={"status": _parse_status(v1alpha1.ImagePrefetchStatus, body.get("status"))}
    )


def parse_node_gate(body: Mapping[str, Any]) -> v1alpha1.NodeGate:
    """Read a NodeGate. An unreadable status becomes None, because the operator rewrites it.

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
    # Validate JSON, because only for JSON is strict mode as strict as the API server: it refuses
    # "5" for 5, but accepts lists for tuples and text for times. `default` converts kopf's views of
    # a body.
    try:
        return model.model_validate_json(json.dumps(body, default=dict), strict=True)
    except pydantic.ValidationError as error:
        first, *rest = error.errors(include_url=False)
        # pydantic counts only the valid entries of a list, so that one invalid entry may also make
        # the list too short. Such a consequence of the first problem is not counted as another.
        further = [other for other in rest if other["loc"] != first["loc"][: len(other["loc"])]]
        problem = _problem(first)
        if further:
            problem += f" (and {len(further)} more)"
        raise InvalidObject(_path(first["loc"]), problem) from error


def _path(location: tuple[int | str, ...]) -> str:
    """Format a location as the API server does: `spec.images[1].image`."""
    if location and location[-1] in _UNION_MEMBERS:
        location = location[:-1]  # pydantic's name for a union's member; no field has such a name
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
