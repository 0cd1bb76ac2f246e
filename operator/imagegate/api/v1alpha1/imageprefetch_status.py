"""Status of an ImagePrefetch. Its size does not grow with the number of nodes.

No field of it has a default in the CRD, because the operator compares the status that it read with
the status that it would write: a field that the API server fills in would make them differ forever.
"""

from typing import Annotated, Final

from pydantic import AwareDatetime, Field

from imagegate.api import meta

MAX_FAILURES: Final = 10


class NodeCounts(meta.ApiModel):
    """Nodes by state. `desired` is the sum of cached, pulling, pending and failed."""

    desired: int = Field(default=0, ge=0, description="Nodes that should hold the images.")
    cached: int = Field(default=0, ge=0, description="Nodes that hold all the images.")
    pulling: int = Field(default=0, ge=0, description="Nodes that are pulling now.")
    pending: int = Field(default=0, ge=0, description="Nodes that wait for their turn.")
    failed: int = Field(default=0, ge=0, description="Nodes on which the last attempt failed.")
    skipped: int = Field(
        default=0,
        ge=0,
        description="Matching nodes that get no images: they are leaving, cordoned, under disk"
        " pressure, virtual, or of a platform that no image supports.",
    )
    gated: int = Field(
        default=0, ge=0, description="Nodes that are held by the gate taint for this prefetch."
    )


class ImageStatus(meta.ApiModel):
    """State of one image."""

    image: str = Field(max_length=512, description="The reference, as in the spec or the workload.")
    from_: str | None = Field(
        default=None,
        alias="from",
        max_length=512,
        description="The workload that names the image, as KIND NAMESPACE/NAME, or"
        " KIND.GROUP NAMESPACE/NAME unless the kind is Kubernetes' own; the first by name"
        " if there are several. Repository NAME for a tag of `spec.repositories`. Absent if"
        " `spec.images` names the image.",
    )
    digest: str | None = Field(
        default=None,
        max_length=160,
        description="The digest that the tag was resolved to and that is rolled out, under"
        " `refresh.mode` Digest. The operator reads it from here after a restart.",
    )
    resolved_time: AwareDatetime | None = Field(
        default=None, description="When the tag was first seen to have this digest."
    )
    compressed_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Bytes that a pull transfers: the sum of all compressed layers.",
    )
    largest_layer_bytes: int | None = Field(
        default=None,
        ge=0,
        description="The largest layer, compressed, in bytes."
        " A layer is pulled and unpacked by one thread.",
    )
    advice: tuple[meta.Sentence, ...] = Field(
        default=(), max_length=8, description="Changes that would make this image faster to pull."
    )


class PullFailure(meta.ApiModel):
    """One node on which the last attempt failed."""

    node: str = Field(max_length=meta.MAX_NAME, description="Name of the node.")
    image: str = Field(
        default="", max_length=512, description="The image that failed, if it is known."
    )
    reason: str = Field(max_length=128, description="Why, in one CamelCase word.")
    message: meta.Sentence = Field(
        default="", description="Message of the kubelet or of the container runtime."
    )
    attempts: int = Field(default=0, ge=0, description="Attempts so far.")
    next_attempt: AwareDatetime | None = Field(
        default=None, description="When the next attempt is due; absent when none will be made."
    )


class RefreshStatus(meta.ApiModel):
    """When the tags are resolved."""

    last_check_time: AwareDatetime | None = Field(
        default=None, description="When the tags were last resolved."
    )
    next_check_time: AwareDatetime | None = Field(
        default=None,
        description="When the tags will be resolved next, unless a push event comes before.",
    )
    message: meta.Sentence | None = Field(
        default=None, description="Why not every tag could be resolved, and what to do about it."
    )


class RepositoryStatus(meta.ApiModel):
    """The chosen tags of one repository."""

    repository: str = Field(max_length=255, description="The repository, as in the spec.")
    tags: tuple[Annotated[str, Field(max_length=128)], ...] = Field(
        default=(),
        max_length=16,
        description="The chosen tags, the newest first. The operator reads them from here after a"
        " restart.",
    )
    more_tags: int | None = Field(
        default=None, ge=0, description="Number of further tags that do not fit in this status."
    )
    matching: int = Field(
        default=0, ge=0, description="Tags that `filterTags` and `policy` accept."
    )
    listed: int = Field(
        default=0,
        ge=0,
        description="Tags in the repository, without those of signatures and other artifacts.",
    )
    message: meta.Sentence | None = Field(
        default=None,
        description="Why no tag is chosen, or why the tags could not be listed, and what to do"
        " about it.",
    )


class ImagePrefetchStatus(meta.ApiModel):
    """State that the operator observed."""

    observed_generation: int | None = Field(
        default=None, ge=0, description="The `metadata.generation` that this status is for."
    )
    target: str | None = Field(
        default=None,
        max_length=meta.MAX_LABEL_VALUE,
        description="Short hash of the images, tags and digests included."
        " A node that holds them has the label cached.imagegate.dev/NAME with this value.",
    )
    nodes: NodeCounts | None = Field(default=None, description="Numbers of nodes.")
    images: tuple[ImageStatus, ...] = Field(
        default=(), max_length=64, description="State of each image."
    )
    more_images: int | None = Field(
        default=None, ge=0, description="Number of further images that do not fit in this status."
    )
    digests: meta.ShortDigests | None = Field(
        default=None,
        description="Digests that the tags of those further images were resolved to, under"
        " `refresh.mode` Digest. Key: first 12 hex digits of SHA-256 over the reference.",
    )
    refresh: RefreshStatus | None = Field(
        default=None, description="When tags are resolved, under `refresh.mode` Digest."
    )
    repositories: tuple[RepositoryStatus, ...] = Field(
        default=(), max_length=8, description="The chosen tags of `spec.repositories`."
    )
    failures: tuple[PullFailure, ...] = Field(
        default=(),
        max_length=MAX_FAILURES,
        description="Nodes on which the last attempt failed, newest first, 10 at most.",
    )
    conditions: meta.Conditions = Field(
        default=(),
        description="Ready: every desired node holds every image."
        " Progressing: the operator is at work."
        " Degraded: an administrator must act; the message says on what."
        " ImagesFound, if `spec.imagesFrom` is set: every source was read, and each of its images"
        " is among the images; the message says which images are pulled without secrets."
        " TagsSelected, if `spec.repositories` is set: tags of every repository are chosen, and the"
        " last lists of tags were read."
        " CredentialsVerified, present only while it is False: on some nodes, images that are"
        " pulled with secrets can be used without secrets.",
    )
