"""``spec.repositories``: which tags of a repository are pulled, with the words of Flux'
ImagePolicy (image.toolkit.fluxcd.io), so that users can copy their policies.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from imagegate.api import cel, meta, references, semver_ranges, tag_filters
from imagegate.api.v1alpha1 import images

MAX_KEEP: Final = 16
MAX_REPOSITORY: Final = 255
"""Longest name of a repository in characters, with its registry."""

_NOT_A_REPOSITORY: Final = (
    "is not a repository: write [registry[:port]/]name in lowercase, without a tag and a digest"
)


def _check_repository(text: str) -> None:
    reference = references.parse(text)
    if reference.tag is not None or reference.digest is not None:
        raise ValueError(f'"{text}" {_NOT_A_REPOSITORY}')


def _check_pattern(text: str) -> None:
    tag_filters.compiled(text)


def _check_range(text: str) -> None:
    try:
        semver_ranges.parse(text)
    except semver_ranges.InvalidRange as error:
        raise ValueError(str(error)) from None


_NO_GROUP: Final = (
    "names a group that the pattern does not have: write (?P<name>...) in pattern, and $name in"
    " extract"
)


class FilterTags(meta.ApiModel):
    """Which tags take part, and by which part of them they are compared."""

    model_config = ConfigDict(
        json_schema_extra=cel.extensions(
            cel.Rule(
                "!has(self.extract)"
                f" || self.extract.findAll({cel.literal(tag_filters.NAMED)})"
                ".all(n, self.pattern.contains('<' + n.replace('$', '').replace('{', '') + '>'))",
                f"the template {_NO_GROUP}",
                explain=cel.quoting("self.extract", _NO_GROUP),
                field=".extract",
            )
        )
    )

    pattern: Annotated[
        str,
        Field(min_length=1, max_length=tag_filters.MAX_PATTERN),
        cel.Checked(
            # Both results are accepted: the API server refuses a pattern that it cannot compile.
            cel.Rule(
                "''.matches(self) in [true, false]", "the value is not a regular expression of RE2"
            ),
            _check_pattern,
        ),
    ] = Field(
        description="Regular expression (RE2) that a tag must contain; ^ and $ bind it to the begin"
        " and the end of the tag."
    )
    extract: (
        Annotated[
            str,
            Field(max_length=tag_filters.MAX_EXTRACT),
            cel.matching(
                f"^.*{tag_filters.REFERS}.*$",
                "names no group of the pattern: write $name or ${name}",
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="Template of the text by which tags are compared, such as $ts for the group"
        " (?P<ts>[0-9]+). Default: the whole tag.",
    )

    @model_validator(mode="after")
    def _groups_exist(self) -> Self:
        if tag_filters.unknown_groups(self.pattern, self.extract or ""):
            raise ValueError(f'"{self.extract}" {_NO_GROUP}')
        return self


class SemVerPolicy(meta.ApiModel):
    """The highest versions are the newest tags."""

    range: Annotated[
        str,
        Field(max_length=semver_ranges.MAX_RANGE),
        cel.Checked(
            cel.Rule(
                f"self.matches({cel.literal(semver_ranges.GRAMMAR)})",
                f"the value {semver_ranges.COMPLAINT}",
                explain=cel.quoting("self", semver_ranges.COMPLAINT),
            ),
            _check_range,
        ),
    ] = Field(
        description="Versions that take part, such as >=1.4 <2, ^1.4, ~1.4.2, 1.x or 1.4 - 1.9."
        " Prereleases take part only if the range names one, such as >=1.4.0-0. Tags that are not"
        " MAJOR.MINOR.PATCH, with or without a leading v, do not take part."
    )


Order = Annotated[
    Literal["asc", "desc"],
    Field(
        description="asc: the highest is the newest tag. desc: the lowest is the newest tag."
        " Default asc."
    ),
]


class NumericalPolicy(meta.ApiModel):
    """Tags are compared as decimal numbers. Tags that are no number do not take part."""

    order: Order = "asc"


class AlphabeticalPolicy(meta.ApiModel):
    """Tags are compared as texts."""

    order: Order = "asc"


_ONE_POLICY: Final = "name exactly one of semver, numerical and alphabetical"


class Policy(meta.ApiModel):
    """Which tags are the newest: exactly one of the three."""

    model_config = ConfigDict(
        json_schema_extra=cel.extensions(
            cel.Rule(
                "[has(self.semver), has(self.numerical), has(self.alphabetical)]"
                ".filter(each, each).size() == 1",
                _ONE_POLICY,
            )
        )
    )

    semver: SemVerPolicy | None = Field(
        default=None, description="The highest semantic versions within a range."
    )
    numerical: NumericalPolicy | None = Field(
        default=None, description="By number, such as the time of the build."
    )
    alphabetical: AlphabeticalPolicy | None = Field(
        default=None, description="By the order of characters, such as RELEASE.2026-11-28."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [each for each in (self.semver, self.numerical, self.alphabetical) if each]
        if len(given) != 1:
            raise ValueError(_ONE_POLICY)
        return self


class Repository(meta.ApiModel):
    """A repository whose newest tags are pulled."""

    repository: Annotated[
        str,
        Field(max_length=MAX_REPOSITORY),
        cel.Checked(
            cel.Rule(
                f"self.matches({cel.literal(images.REPOSITORY_GRAMMAR)}) && !{images.REFUSED_NAME}",
                f"the value {_NOT_A_REPOSITORY}",
                explain=cel.quoting("self", _NOT_A_REPOSITORY),
            ),
            _check_repository,
        ),
    ] = Field(
        description="The repository as images name it: [registry[:port]/]name, without a tag."
    )
    filter_tags: FilterTags | None = Field(
        default=None, description="Which tags take part. Default: all tags."
    )
    policy: Policy = Field(description="Which of these tags are the newest.")
    keep: int = Field(
        default=2,
        ge=1,
        le=MAX_KEEP,
        description="How many of the newest tags are pulled. Older tags are released, and the"
        " kubelet may remove them. Default 2: the tag before the newest is still there for nodes"
        " that join during a rollout, and to roll back.",
    )
    image_pull_secrets: images.PullSecrets | None = Field(
        default=None,
        description="Secrets to list the tags and to pull the images, of type"
        " kubernetes.io/dockerconfigjson, in the puller namespace."
        " Default: `spec.imagePullSecrets`.",
    )

    @property
    def name(self) -> str:
        """The full name, with the domain and Docker Hub's `library/`."""
        return references.parse(self.repository).name


def differ(repositories: tuple[Repository, ...]) -> tuple[Repository, ...]:
    """Return the repositories. Raises ValueError if two are the same."""
    seen: dict[str, str] = {}
    for each in repositories:
        if each.name in seen:
            raise ValueError(
                f'"{seen[each.name]}" and "{each.repository}" are the same repository, {each.name}:'
                " keep one of them"
            )
        seen[each.name] = each.repository
    return repositories


NO_DUPLICATES: Final = images.no_duplicates(
    f"self.map(r, {images.repository('r.repository')})", "repository"
)
