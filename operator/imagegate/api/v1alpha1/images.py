"""Image references in CEL: the rules of `imagegate.api.references` in the API server's language.

The rules include grammar, lengths and normalisation, so that the API server and the operator agree
on every text of up to 512 characters.
"""

from typing import Annotated, Final

from pydantic import Field

from imagegate.api import cel, meta, references

PullSecrets = Annotated[
    tuple[meta.LocalObjectReference, ...],
    Field(
        max_length=16,
        json_schema_extra=cel.extensions(list_type="map", list_map_keys=["name"]),
    ),
]

MAX_REFERENCE: Final = 512
"""Longest reference that the API accepts, in characters. The grammar itself does not limit the
length of the domain."""

_DOMAIN_COMPONENT: Final = "[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?"
_HOST: Final = (
    f"{_DOMAIN_COMPONENT}([.]{_DOMAIN_COMPONENT})*|\\[[a-fA-F0-9:]*[A-F:][a-fA-F0-9:]*\\]"
)
_ODD_HOST: Final = "\\[[a-f0-9]+\\]:[0-9]+"
"""A host in brackets without ":" or an upper-case letter. Only its port makes it a domain."""
_PATH_COMPONENT: Final = "[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*"
_DIGEST: Final = "sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128}"
_NAME: Final = f"((({_HOST})(:[0-9]+)?|{_ODD_HOST})/)?{_PATH_COMPONENT}(/{_PATH_COMPONENT})*"
REPOSITORY_GRAMMAR: Final = f"^{_NAME}$"
_GRAMMAR: Final = f"^{_NAME}(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@({_DIGEST}))?$"
_IMAGE_ID: Final = "^[a-f0-9]{64}$"

_HUB: Final = "^(index[.])?docker[.]io/"
_HAS_DOMAIN: Final = "^(localhost|[^/]*[.:A-Z][^/]*)/"
_OFFICIAL: Final = "^((index[.])?docker[.]io/)?[^/]+$"
_TAG_OR_DIGEST: Final = "@|:[^/]+$"
_SUFFIX: Final = "(:[^/@]*)?(@[^/]*)?$"
_SHORT_ENOUGH: Final = f"^((localhost|[^/_]*[.:A-Z][^/_]*)/)?[^:@]{{0,255}}{_SUFFIX}"
"""A host that contains "_" is no domain in the grammar. So it counts as part of the path (see
`references.parse`)."""
_OFFICIAL_TOO_LONG: Final = f"^((index[.])?docker[.]io/)?[^/:@]{{248,}}{_SUFFIX}"
"""The implied `library/` counts as part of the path."""
_TOO_LONG: Final = f"!self.matches('{_SHORT_ENOUGH}') || self.matches('{_OFFICIAL_TOO_LONG}')"

REFUSED_NAME: Final = f"(self.matches('{_IMAGE_ID}') || {_TOO_LONG})"
"""CEL expression for names that match the grammar and are refused nevertheless."""

# Reasons for a refusal. The first that applies is the message; if none applies, the message shows
# the general form.
_CAUSES: Final = (
    ("self.contains('://')", "a reference has no URL scheme: remove it"),
    (
        f"self.matches('{_IMAGE_ID}')",
        "64 hex digits are an image ID, not a name: write name@sha256:ID",
    ),
    (
        f"self.contains('@') && !self.matches('@({_DIGEST})$')",
        "a digest must follow '@': write sha256: and its 64 lowercase hex digits",
    ),
    (
        _TOO_LONG,
        "the repository name is longer than 255 characters, without the registry",
    ),
    (
        "self.lowerAscii().matches(" + cel.literal(_GRAMMAR) + ")",
        "the repository name must be lowercase",
    ),
)
_GENERAL: Final = (
    "write [registry[:port]/]name[:tag][@sha256:digest], the name in lowercase, and the tag of at"
    " most 128 letters, digits, '_', '.' and '-'"
)


def _explanation() -> str:
    cause = cel.literal(_GENERAL)
    for test, text in reversed(_CAUSES):
        cause = f"({test} ? {cel.literal(text)} : {cause})"
    return f"'\"' + self + '\" is not an image reference: ' + {cause}"


ImageReference = Annotated[
    str,
    Field(max_length=MAX_REFERENCE),
    cel.Checked(
        cel.Rule(
            f"self.matches({cel.literal(_GRAMMAR)}) && !self.matches('{_IMAGE_ID}')"
            f" && !({_TOO_LONG})",
            f"this is not an image reference: {_GENERAL}",
            explain=_explanation(),
        ),
        references.parse,
    ),
]
"""The text as the user wrote it, because the kubelet records credentials by this text."""


def _normalized(image: str) -> str:
    """Return the CEL expression for the normalized form of the reference `image`."""
    return f"{_full(image)} + ({image}.matches('{_TAG_OR_DIGEST}') ? '' : ':latest')"


def _full(image: str) -> str:
    """Return the CEL expression for the reference with its domain; a missing tag is not added."""
    return (
        f"({image}.matches('{_OFFICIAL}') ? 'docker.io/library/' :"
        f" {image}.matches('{_HUB}') || !{image}.matches('{_HAS_DOMAIN}') ? 'docker.io/' : '')"
        f" + {image}.substring(size({image}.find('{_HUB}')))"
    )


def repository(image: str) -> str:
    """Return the CEL expression for the repository of the reference `image`, as `Reference.name`.

    The chart's policy for ImagePrefetches compares it with the allowed registries.
    """
    return f"({_full(image)}).find('^[^/]*/[^:@]*')"


def no_duplicates(names: str, what: str) -> cel.Rule:
    """Return the rule of a list whose entries have different normalized names: the CEL expression
    ``names``. ``what``: the singular of the entries, for the message.
    """
    # A list that contains one list replaces a variable. If the inner loop computed the names again,
    # the estimated cost would be six times the API server's limit for a rule.
    once = f"[{names}]"
    return cel.Rule(
        f"{once}.all(names, names.all(x, names.exists_one(y, x == y)))",
        f"two entries are the same {what}: keep one of them",
        explain=f"'two entries are the same {what}, ' +"
        f" {once}.map(names, names.filter(x, !names.exists_one(y, x == y))[0])[0] +"
        " ': keep one of them'",
    )


NO_DUPLICATES: Final = no_duplicates(f"self.map(i, {_normalized('i.image')})", "image")
