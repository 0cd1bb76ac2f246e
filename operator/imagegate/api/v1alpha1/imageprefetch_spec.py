"""Spec of an ImagePrefetch: which images, which nodes, and under which limits they are pulled."""

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from imagegate.api import cel, kinds, meta, parallel, paths, references
from imagegate.api.v1alpha1 import images as image_rules
from imagegate.api.v1alpha1.repositories import NO_DUPLICATES, Repository, differ

_DAY: Final = 86400

MAX_IMAGES: Final = 64
"""Largest number of images of one ImagePrefetch."""


class Image(meta.ApiModel):
    """One image that the nodes should hold."""

    image: image_rules.ImageReference = Field(
        description="Reference of the image: [registry/]name, with a tag, a digest, or both."
        " Without either the tag is latest. With both, the digest decides."
    )
    image_pull_secrets: image_rules.PullSecrets | None = Field(
        default=None,
        description="Secrets for this image alone, of type kubernetes.io/dockerconfigjson, in the"
        " puller namespace. Default: `spec.imagePullSecrets`.",
    )

    @property
    def reference(self) -> references.Reference:
        """The parsed reference."""
        return references.parse(self.image)


_BUILT_IN: Final = ", ".join(kinds.BUILT_IN)
_API_VERSION: Final = (
    "is not the apiVersion of a kind with an API group: write GROUP/VERSION, such as"
    " argoproj.io/v1alpha1"
)
_NO_VERSION: Final = f"needs apiVersion: only {_BUILT_IN} have a default"
_NO_PATHS: Final = (
    "has no known fields for images: name them in podTemplates or images, such as"
    " podTemplates: [spec.template]"
)
_KNOWN: Final = cel.literals(sorted(f"{kind.group}/{kind.kind}" for kind in kinds.ALL))

Paths = Annotated[
    tuple[
        Annotated[
            str, Field(max_length=paths.MAX_PATH), cel.matching(paths.GRAMMAR, paths.COMPLAINT)
        ],
        ...,
    ],
    Field(max_length=paths.MAX_PATHS),
]


class ImageSource(meta.ApiModel):
    """Objects that name images: workloads with pod templates, or others with image fields."""

    model_config = ConfigDict(
        json_schema_extra=cel.extensions(
            cel.Rule(
                f"has(self.apiVersion) || self.kind in {cel.literals(kinds.BUILT_IN)}",
                f"the kind {_NO_VERSION}",
                explain=cel.quoting("self.kind", _NO_VERSION),
                field=".apiVersion",
            ),
            cel.Rule(
                "!has(self.apiVersion)"
                " || (has(self.podTemplates) && size(self.podTemplates) > 0)"
                " || (has(self.images) && size(self.images) > 0)"
                f" || (self.apiVersion.split('/')[0] + '/' + self.kind) in {_KNOWN}",
                f"the kind {_NO_PATHS}",
                explain=cel.quoting("self.kind", _NO_PATHS),
                field=".podTemplates",
            ),
        )
    )

    api_version: (
        Annotated[
            str,
            Field(max_length=128),
            cel.matching(cel.API_VERSION, _API_VERSION),
        ]
        | None
    ) = Field(
        default=None,
        description="API group and version of the kind, such as argoproj.io/v1alpha1."
        f" Default for {_BUILT_IN}: that of Kubernetes.",
    )
    kind: Annotated[
        str,
        Field(max_length=63),
        cel.matching(
            "^[A-Za-z]([-A-Za-z0-9]*[A-Za-z0-9])?$",
            "is not a kind: write its name in letters and digits, such as Deployment",
        ),
    ] = Field(
        description="Kind of the objects, with a namespace. Objects of a known kind that have ended"
        " (a finished Job), and Jobs of a CronJob, are ignored."
    )
    namespace: meta.DnsLabel = Field(
        description="Namespace of the objects. The chart's `imagesFrom.namespaces` or"
        " `imagesFrom.resources` must let the operator read the kind there."
    )
    selector: meta.LabelSelector = Field(
        default=meta.LabelSelector(),
        description="Selects objects of that kind. Default: all in the namespace.",
    )
    pod_templates: Paths = Field(
        default=(),
        description="Paths of pod templates or pod specs, such as spec.workers[*].template; `[*]`"
        " stands for each entry of a list or map. The images of their containers, init containers"
        " and image volumes are used. With `podTemplates` or `images`, only these fields are read."
        " Default: the fields of a known kind (docs/workloads.md).",
    )
    images: Paths = Field(
        default=(),
        description="Paths of fields with one image reference each, such as spec.driver.image.",
    )

    @model_validator(mode="after")
    def _fields_known(self) -> Self:
        if self.api_version is None and self.kind not in kinds.BUILT_IN:
            raise ValueError(f'"{self.kind}" {_NO_VERSION}')
        named = self.pod_templates or self.images
        if not named and kinds.known(self.api_version or "", self.kind) is None:
            raise ValueError(f'"{self.kind}" {_NO_PATHS}')
        return self


class DaemonSetReference(meta.ApiModel):
    """A DaemonSet whose pod must be Ready on a joining node before pulls start there."""

    namespace: meta.DnsLabel = Field(
        description="Namespace of the DaemonSet; one of the chart's `startAfter.namespaces`."
    )
    daemon_set: meta.DaemonSetName = Field(description="Name of the DaemonSet.")


def _check_parallel(value: int | str) -> None:
    parallel.parse(value)


Parallel = Annotated[
    int | str,
    cel.Checked(
        cel.Rule(
            f"type(self) == int ? self >= 1 : self.matches('{parallel.PERCENTAGE}')",
            f"the value {parallel.MESSAGE}",
            explain=cel.quoting("string(self)", parallel.MESSAGE),
        ),
        _check_parallel,
    ),
]


class Gate(meta.ApiModel):
    """Whether and for how long joining nodes are held by the gate taint."""

    mode: Literal["NewNodes", "Never"] = Field(
        default="NewNodes",
        description="NewNodes: a joining node takes no pods until it holds the images."
        " Never: nodes get the images, but are not held. Default NewNodes.",
    )
    max_parallel: Parallel = Field(
        default="100%",
        description="How many joining nodes may pull at once: a number, or a percentage of the"
        " matching nodes that is rounded down but never to less than 1. `rollout.maxParallel` does"
        " not bound them. Default 100%.",
    )
    policy: Literal["FailOpen", "FailClosed"] = Field(
        default="FailOpen",
        description="What happens when the images cannot be pulled. FailOpen: the node is released"
        " at the timeout, or immediately when the failure is permanent. FailClosed: the node is"
        " held until it holds the images. Default FailOpen.",
    )
    timeout_seconds: int = Field(
        default=600,
        ge=1,
        le=_DAY,
        description="How long a node is held under FailOpen, in seconds from the time it became"
        " Ready. Default 600; cluster-autoscaler gives a node 15 minutes.",
    )
    on_reboot: Literal["Ignore", "Verify", "Hold"] = Field(
        default="Verify",
        description="What happens after a node has rebooted. Ignore: its images are assumed to be"
        " still there. Verify: its images are checked while it accepts pods."
        " Hold: the node is held from the moment it is not Ready until its images are checked, so"
        " that no pod is scheduled there in between. Default Verify.",
    )


class Rollout(meta.ApiModel):
    """How nodes in service get new images. Joining nodes have priority over them."""

    max_parallel: Parallel = Field(
        default="10%",
        description="How many of the matching nodes in service may pull at once: a number, or a"
        " percentage that is rounded down but never to less than 1. Joining nodes are bound by"
        " `gate.maxParallel` alone. Default 10%.",
    )
    seeds: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="How many nodes of a topology domain may pull at once while no node there has"
        " the images yet. Default 1.",
    )
    fanout: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="How many nodes of a domain may pull for each node there that has the images,"
        " so that a registry mirror or peers in the domain are not overloaded. Default 2.",
    )
    topology_key: meta.QualifiedName = Field(
        default="topology.kubernetes.io/zone",
        description="Node label whose values are the domains. Nodes without it are one domain."
        " Default topology.kubernetes.io/zone.",
    )
    paused: bool = Field(
        default=False,
        description="True starts no further pull on nodes in service. Joining nodes still get their"
        " images. Default false.",
    )


_RETRY_ORDER: Final = "minSeconds must not be larger than maxSeconds"


class Retry(meta.ApiModel):
    """When a failed pull is tried again."""

    model_config = ConfigDict(
        json_schema_extra=cel.extensions(
            cel.Rule(
                "self.minSeconds <= self.maxSeconds",
                _RETRY_ORDER,
                field=".minSeconds",
            )
        )
    )

    limit: int = Field(
        default=6,
        ge=1,
        le=100,
        description="Failed attempts after which a node counts as failed. From then on the pull is"
        " tried again every `maxSeconds`. Default 6.",
    )
    min_seconds: int = Field(
        default=10,
        ge=1,
        le=_DAY,
        description="Wait before the second attempt, in seconds; it doubles each time. Default 10.",
    )
    max_seconds: int = Field(
        default=300,
        ge=1,
        le=_DAY,
        description="Longest wait between two attempts, in seconds. Default 300.",
    )
    timeout_seconds: int | None = Field(
        default=None,
        ge=1,
        le=_DAY,
        description="Seconds after which an attempt is reported as failed. The kubelet continues"
        " the pull; the next attempt begins when that pull has ended. Default: from the size of the"
        " images, 10 minutes plus a second for every 5 MB, at least 15 minutes; never, if the"
        " registry does not report the size.",
    )

    @model_validator(mode="after")
    def _min_before_max(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"{_RETRY_ORDER}, but {self.min_seconds} > {self.max_seconds}")
        return self


class Refresh(meta.ApiModel):
    """Whether the image is pulled again when its tag moves."""

    mode: Literal["Never", "Digest"] = Field(
        default="Never",
        description="Never: a tag is pulled once. Digest: the tag is resolved at the registry, and"
        " a new digest is rolled out, so that the tag means the new image on every node."
        " Default Never.",
    )
    interval_seconds: int = Field(
        default=300,
        ge=30,
        le=_DAY,
        description="Interval in which tags are resolved, in seconds, and in which the tags of"
        " `repositories` are listed, under each mode. A push event causes a check immediately."
        " Default 300.",
    )


class Retention(meta.ApiModel):
    """What happens to finished puller pods."""

    mode: Literal["Keep", "Release"] = Field(
        default="Keep",
        description="Keep: the finished pod stays, so that the kubelet's garbage collection keeps"
        " the images; the pod has no process and no IP address. Release: the pod is deleted after 6"
        " minutes, and garbage collection may remove images that no other pod uses. Default Keep.",
    )


class Disk(meta.ApiModel):
    """How full the image file system of a node may get."""

    max_usage_percent: int = Field(
        default=75,
        ge=1,
        le=100,
        description="No image is pulled onto a node that the images would fill beyond this"
        " percentage. Such a node counts as failed, with the reason DiskFull. 100 disables the"
        " check. Default 75; the kubelet removes images from 85 percent on.",
    )


_SOME_IMAGES: Final = cel.Rule(
    "(has(self.images) && size(self.images) > 0)"
    " || (has(self.imagesFrom) && size(self.imagesFrom) > 0)"
    " || (has(self.repositories) && size(self.repositories) > 0)",
    "there is nothing to pull: name images in spec.images, workloads in spec.imagesFrom, or"
    " repositories in spec.repositories",
    field=".images",
)
_FEW_TAGS: Final = cel.Rule(
    "!has(self.repositories)"
    f" || self.repositories.map(r, r.keep).sum()"
    f" + (has(self.images) ? size(self.images) : 0) <= {MAX_IMAGES}",
    f"spec.images and the tags of spec.repositories are more than {MAX_IMAGES} images: lower keep,"
    " or make another ImagePrefetch for some of them",
    field=".repositories",
)


class ImagePrefetchSpec(meta.ApiModel):
    """Which images, which nodes, and how."""

    model_config = ConfigDict(json_schema_extra=cel.extensions(_SOME_IMAGES, _FEW_TAGS))

    images: tuple[Image, ...] = Field(
        default=(),
        max_length=MAX_IMAGES,
        description="The images, at most 64. May be empty only if `imagesFrom` or `repositories` is"
        " set. Two entries for the same image are refused, also if they are written differently.",
        json_schema_extra=cel.extensions(
            image_rules.NO_DUPLICATES, list_type="map", list_map_keys=["image"]
        ),
    )
    images_from: tuple[ImageSource, ...] = Field(
        default=(),
        max_length=16,
        description="Objects of any kind, such as workloads. The images that their pod templates or"
        " image fields name at the moment are pulled, too: with `spec.imagePullSecrets` if the"
        " registry is in the chart's `imagesFrom.pullSecretRegistries`, else without"
        " secrets. Together with `images` and the tags that `repositories` may select at most 64"
        " images: the first by name.",
    )
    repositories: tuple[Repository, ...] = Field(
        default=(),
        max_length=8,
        description="Repositories whose newest tags are pulled, too, also tags that are yet to be"
        " pushed. The tags are listed every `refresh.intervalSeconds`, and immediately after a push"
        " event. A tag that is not among the newest any more is released. With `images` at most 64"
        " images.",
        json_schema_extra=cel.extensions(
            NO_DUPLICATES, list_type="map", list_map_keys=["repository"]
        ),
    )
    node_selector: meta.LabelSelector = Field(
        default=meta.LabelSelector(), description="Which nodes get the images. Default: every node."
    )
    image_pull_secrets: image_rules.PullSecrets = Field(
        default=(),
        description="Secrets for the images that have no `imagePullSecrets` of their own, of type"
        " kubernetes.io/dockerconfigjson, in the puller namespace.",
    )
    puller_namespace: meta.DnsLabel | None = Field(
        default=None,
        description="Namespace of the puller pods and of the pull secrets. It must be listed in the"
        " chart's `puller.namespaces`. Default: the first of that list, imagegate-pullers unless"
        " the value is changed.",
    )
    start_after: tuple[DaemonSetReference, ...] = Field(
        default=(),
        max_length=8,
        description="DaemonSets, such as a registry mirror or a credential agent, whose pods must"
        " be Ready on a joining node before its pulls start. A node is joining while it is held, or"
        " until it has got images once. The wait of a held node counts towards"
        " `gate.timeoutSeconds`. Default: none.",
        json_schema_extra=cel.extensions(list_type="map", list_map_keys=["namespace", "daemonSet"]),
    )
    gate: Gate = Field(default=Gate(), description="How joining nodes are held.")
    rollout: Rollout = Field(default=Rollout(), description="How nodes in service get the images.")
    retry: Retry = Field(default=Retry(), description="When a failed pull is tried again.")
    refresh: Refresh = Field(
        default=Refresh(), description="Whether images are pulled again when their tags move."
    )
    retention: Retention = Field(
        default=Retention(), description="What happens to finished puller pods."
    )
    disk: Disk = Field(default=Disk(), description="How full nodes may get.")
    dry_run: bool = Field(
        default=False,
        description="True reports in the status what would happen, and changes no pod, no label and"
        " no taint. Default false.",
    )

    @model_validator(mode="after")
    def _some_images(self) -> Self:
        if not self.images and not self.images_from and not self.repositories:
            raise ValueError(_SOME_IMAGES.message)
        if len(self.images) + sum(each.keep for each in self.repositories) > MAX_IMAGES:
            raise ValueError(_FEW_TAGS.message)
        return self

    @field_validator("repositories")
    @classmethod
    def _repositories_differ(cls, repositories: tuple[Repository, ...]) -> tuple[Repository, ...]:
        return differ(repositories)

    @field_validator("images")
    @classmethod
    def _images_differ(cls, images: tuple[Image, ...]) -> tuple[Image, ...]:
        seen: dict[str, str] = {}
        for entry in images:
            normalized = entry.reference.normalized
            if normalized in seen:
                raise ValueError(
                    f'"{seen[normalized]}" and "{entry.image}" are the same image, {normalized}:'
                    " keep one of them"
                )
            seen[normalized] = entry.image
        return images
