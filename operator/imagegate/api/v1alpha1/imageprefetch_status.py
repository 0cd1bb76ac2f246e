"""Status of an ImagePrefetch. Its size does not grow with the number of nodes.

Nothing here has a default in the CRD: the operator compares what it read with what it would write,
and a field that the API server fills in would make the two differ for ever.
"""

from typing import Final

from pydantic import AwareDatetime, Field

from imagegate.api import meta

MAX_FAILURES: Final = 10


class NodeCounts(meta.ApiModel):
    """Nodes by where they stand. `desired` is the sum of cached, pulling, pending and failed."""

    desired: int = Field(default=0, ge=0, description="Nodes that should hold the images.")
    cached: int = Field(default=0, ge=0, description="Nodes that hold all the images.")
    pulling: int = Field(default=0, ge=0, description="Nodes that are pulling now.")
    pending: int = Field(default=0, ge=0, description="Nodes that wait for their turn.")
    failed: int = Field(default=0, ge=0, description="Nodes on which the last attempt failed.")
    skipped: int = Field(
        default=0,
        ge=0,
        description="Matching nodes that are left alone: leaving, cordoned, under disk pressure,"
        " virtual, or of a platform that no image has.",
    )
    gated: int = Field(
        default=0, ge=0, description="Nodes that are held by the gate taint for this prefetch."
    )


class ImageStatus(meta.ApiModel):
    """What is known of one image."""

    image: str = Field(max_length=512, description="The reference, as in the spec or the workload.")
    from_: str | None = Field(
        default=None,
        alias="from",
        max_length=512,
        description="The workload that names it, as KIND NAMESPACE/NAME; absent where the spec"
        " itself does. Of several the first by name.",
    )
    digest: str | None = Field(
        default=None,
        max_length=160,
        description="What the tag was resolved to and is rolled out, under `refresh.mode` Digest."
        " The operator keeps it here, and goes on with it when it starts.",
    )
    resolved_time: AwareDatetime | None = Field(
        default=None, description="When the tag was first seen to have this digest."
    )
    compressed_bytes: int | None = Field(
        default=None, ge=0, description="What is transferred: all layers compressed, in bytes."
    )
    largest_layer_bytes: int | None = Field(
        default=None,
        ge=0,
        description="The largest layer, compressed, in bytes."
        " A layer is pulled and unpacked by one thread.",
    )
    advice: tuple[meta.Sentence, ...] = Field(
        default=(), max_length=8, description="What would make this image faster to pull."
    )


class PullFailure(meta.ApiModel):
    """One node on which the last attempt failed."""

    node: str = Field(max_length=meta.MAX_NAME, description="Name of the node.")
    image: str = Field(
        default="", max_length=512, description="The image, where it is known which one it was."
    )
    reason: str = Field(max_length=128, description="Why, in one CamelCase word.")
    message: meta.Sentence = Field(
        default="", description="What the kubelet or the container runtime said."
    )
    attempts: int = Field(default=0, ge=0, description="Attempts so far.")
    next_attempt: AwareDatetime | None = Field(
        default=None, description="When the next attempt is due; absent when none will be made."
    )


class RefreshStatus(meta.ApiModel):
    """How the tags are followed."""

    last_check_time: AwareDatetime | None = Field(
        default=None, description="When the tags were looked up last."
    )
    next_check_time: AwareDatetime | None = Field(
        default=None,
        description="When they will be looked up next, unless a push event comes before.",
    )
    message: meta.Sentence | None = Field(
        default=None, description="Why not every tag could be resolved, and what to do about it."
    )


class ImagePrefetchStatus(meta.ApiModel):
    """What the operator found."""

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
        default=(), max_length=64, description="What is known of each image."
    )
    more_images: int | None = Field(
        default=None, ge=0, description="Images that there is no room for in this status."
    )
    digests: meta.ShortDigests | None = Field(
        default=None,
        description="What the tags of those images were resolved to, under `refresh.mode` Digest,"
        " by the first 12 hex digits of SHA-256 over the reference.",
    )
    refresh: RefreshStatus | None = Field(
        default=None, description="How tags are followed, under `refresh.mode` Digest."
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
        " Degraded: something needs a person; the message says what."
        " ImagesFound, where there is `spec.imagesFrom`: every source was read, and every image of"
        " it is among the images; the message says which are pulled without secrets."
        " CredentialsVerified, only while it is False: images that are pulled with secrets can be"
        " used without them on some nodes.",
    )
