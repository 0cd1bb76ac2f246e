"""Image references in CEL: the rules of `imagegate.api.references` as the API server checks them.

Grammar, lengths and normalisation are all there, so that the API server and the read path agree on
every text of up to 512 characters.
"""

from typing import Annotated, Final

from pydantic import Field

from imagegate.api import cel, references

MAX_REFERENCE: Final = 512
"""Longest reference that the API takes, in characters; the grammar sets the domain no limit."""

_DOMAIN_COMPONENT: Final = "[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?"
_HOST: Final = (
    f"{_DOMAIN_COMPONENT}([.]{_DOMAIN_COMPONENT})*|\\[[a-fA-F0-9:]*[A-F:][a-fA-F0-9:]*\\]"
)
_ODD_HOST: Final = "\\[[a-f0-9]+\\]:[0-9]+"
"""In brackets and without anything else that looks like a domain: only the port makes it one."""
_PATH_COMPONENT: Final = "[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*"
_DIGEST: Final = "sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128}"
_GRAMMAR: Final = (
    f"^((({_HOST})(:[0-9]+)?|{_ODD_HOST})/)?"
    f"{_PATH_COMPONENT}(/{_PATH_COMPONENT})*"
    f"(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@({_DIGEST}))?$"
)
_IMAGE_ID: Final = "^[a-f0-9]{64}$"

_HUB: Final = "^(index[.])?docker[.]io/"
_HAS_DOMAIN: Final = "^(localhost|[^/]*[.:A-Z][^/]*)/"
_OFFICIAL: Final = "^((index[.])?docker[.]io/)?[^/]+$"
_TAG_OR_DIGEST: Final = "@|:[^/]+$"
_SUFFIX: Final = "(:[^/@]*)?(@[^/]*)?$"
_SHORT_ENOUGH: Final = f"^((localhost|[^/_]*[.:A-Z][^/_]*)/)?[^:@]{{0,255}}{_SUFFIX}"
"""A host with "_" in it is no domain of the grammar, so it counts (see `references.parse`)."""
_OFFICIAL_TOO_LONG: Final = f"^((index[.])?docker[.]io/)?[^/:@]{{248,}}{_SUFFIX}"
"""`library/` counts too."""
_TOO_LONG: Final = f"!self.matches('{_SHORT_ENOUGH}') || self.matches('{_OFFICIAL_TOO_LONG}')"

# Why a reference was refused, the first that applies; where none does, the general form is shown.
_CAUSES: Final = (
    ("self.contains('://')", "a reference has no URL scheme: remove it"),
    (
        f"self.matches('{_IMAGE_ID}')",
        "64 hex digits are an image ID, not a name: write name@sha256:ID",
    ),
    (
        f"self.contains('@') && !self.matches('@({_DIGEST})$')",
        "after '@' comes a digest: write sha256: and its 64 lowercase hex digits",
    ),
    (
        _TOO_LONG,
        "the repository name is longer than 255 characters, the registry not counted",
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
"""The text as the user wrote it: the kubelet remembers credentials by it."""


def _normalized(image: str) -> str:
    """Give the CEL expression for the normalized form of the reference `image`."""
    return f"{_full(image)} + ({image}.matches('{_TAG_OR_DIGEST}') ? '' : ':latest')"


def _full(image: str) -> str:
    """Give the CEL expression for the reference with its domain, and with no other tag."""
    return (
        f"({image}.matches('{_OFFICIAL}') ? 'docker.io/library/' :"
        f" {image}.matches('{_HUB}') || !{image}.matches('{_HAS_DOMAIN}') ? 'docker.io/' : '')"
        f" + {image}.substring(size({image}.find('{_HUB}')))"
    )


def repository(image: str) -> str:
    """Give the CEL expression for the repository of the reference `image`, as `Reference.name`: the
    chart's policy for ImagePrefetches compares it with the registries that are allowed.
    """
    return f"({_full(image)}).find('^[^/]*/[^:@]*')"


# A list of one list stands in for a variable: with the names worked out anew in the inner loop the
# estimated cost is six times what the API server allows for a rule.
_NAMES: Final = f"[self.map(i, {_normalized('i.image')})]"
NO_DUPLICATES: Final = cel.Rule(
    f"{_NAMES}.all(names, names.all(x, names.exists_one(y, x == y)))",
    "two entries are the same image: keep one of them",
    explain=f"'two entries are the same image, ' +"
    f" {_NAMES}.map(names, names.filter(x, !names.exists_one(y, x == y))[0])[0] +"
    " ': keep one of them'",
)
