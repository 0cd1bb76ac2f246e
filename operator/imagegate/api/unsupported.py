"""What the API of v1alpha1 promises and this version of the operator does not do yet.

A field that is accepted and then ignored is worse than one that is refused. So the API server
refuses these, and says what to do instead; the read path does the same for an object that got past
it. A feature that lands is one row less here, and the CRD made anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imagegate.api import cel

if TYPE_CHECKING:
    from imagegate.api.v1alpha1 import ImagePrefetchSpec


@dataclass(frozen=True, slots=True)
class Unsupported:
    """One feature that is not there yet. Both forms of the test are true of a spec without it."""

    field: str
    """Path of the field below `spec`."""
    without: str
    """CEL over the spec."""
    is_without: Callable[[ImagePrefetchSpec], bool]
    """The same in Python."""
    message: str

    def rule(self) -> cel.Rule:
        """Give the rule for the schema of the spec."""
        return cel.Rule(
            self.without, self.message, field=f".{self.field}", reason="FieldValueForbidden"
        )


UNSUPPORTED: Final = (
    Unsupported(
        "imagesFrom",
        "!has(self.imagesFrom) || size(self.imagesFrom) == 0",
        lambda spec: not spec.images_from,
        "reading images from workloads is not supported in this version:"
        " list the images in spec.images",
    ),
)
"""Every row is a rule on `spec`, and `decode.parse_prefetch` applies it too."""


def first(spec: ImagePrefetchSpec) -> Unsupported | None:
    """Give the first feature that the spec asks for and that is not there yet."""
    return next((feature for feature in UNSUPPORTED if not feature.is_without(spec)), None)
