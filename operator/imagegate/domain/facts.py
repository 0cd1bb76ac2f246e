"""What the operator knows of the cluster: small frozen records, parsed once at the edge.

Times are seconds since the epoch. ``version`` is the object's resourceVersion as an integer; it
orders two sightings of one object and takes no part in comparing them, so that a kubelet's
heartbeat, which changes nothing else, is not a change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

GROUP = "imagegate.dev"
LABEL_PREFIX = f"cached.{GROUP}/"
"""Prefix of the node labels that record which target of which ImagePrefetch a node holds."""
OBSERVED = f"{GROUP}/observed"
"""Node annotation ``<node uid>/<boot id>``: what the labels were true for."""
PREFETCH_LABEL = f"{GROUP}/prefetch"
FINALIZER = f"{GROUP}/cleanup"
TAINT_VALUE = "pending"
POLICY_VIOLATION = "PolicyViolation"
"""Reason of an ImagePrefetch that asks for what administrators do not allow (`domain.policy`)."""
IMAGES_PER_POD = 8
"""Beyond this the kubelet's event spam filter (25 per object) starts to drop Pulled events."""
HASH_BITS = 256
"""Bits of SHA-256, by which images are spread over puller pods."""


@dataclass(frozen=True, slots=True)
class Taint:
    """One entry of ``spec.taints``, complete, because a JSON patch tests it by equality."""

    key: str
    effect: str
    value: str | None = None
    time_added: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """An image in a Node's ``status.images``."""

    size: int
    """Bytes, as the runtime says."""
    digests: frozenset[str] = frozenset()

    def may_be(self, other: Listed) -> bool:
        """Whether both may be one image: by a digest, or by their size where one has none."""
        if self.digests and other.digests:
            return not self.digests.isdisjoint(other.digests)
        return self.size == other.size


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    uid: str
    version: int = field(compare=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotated: bool = False
    """Whether ``metadata.annotations`` exists at all; a JSON patch must know."""
    taints: tuple[Taint, ...] = ()
    observed: str = ""
    boot_id: str = ""
    kubelet: tuple[int, int] = (0, 0)
    """Major and minor version of its kubelet; zeros where it is not known."""
    runtime: tuple[str, int, int] = ("", 0, 0)
    """Its container runtime: name, major and minor version."""
    created_at: float = 0.0
    ready: bool = False
    ready_since: float | None = None
    """The Ready condition's lastTransitionTime, by the clock of the node itself."""
    disk_pressure: bool = False
    unschedulable: bool = False
    deleting: bool = False
    platform: str = ""
    """``os/architecture``, as the kubelet reports it."""
    address: str = ""
    """The InternalIP, at which the kubelet serves its figures."""
    kubelet_port: int = 10250
    capacity: int = 0
    """Bytes of the file system that the kubelet roots in; 0: unknown."""
    listed: Mapping[str, Listed] = field(default_factory=dict)
    """Those of the wanted images that ``status.images`` lists, by their normalized names."""
    tags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Of the wanted tags among them, the digests that the node lists for the same image."""
    wanted: frozenset[str] = frozenset()
    """The names that were looked for in that list: the absence of any other is not known."""
    smallest_listed: int | None = None
    """Bytes of the smallest image in that list, which the kubelet cuts off below a number of
    images: only of a larger one does absence prove anything. None: nothing is listed."""
    cut_off: tuple[Listed, ...] = ()
    """The images of which the kubelet lists five names, and so maybe not all."""

    @property
    def identity(self) -> str:
        """What the labels of this node are true for: this machine since this boot."""
        return f"{self.uid}/{self.boot_id}"

    def taints_of(self, keys: Collection[str]) -> tuple[Taint, ...]:
        """The taints with one of these keys, whatever their effect or value."""
        return tuple(taint for taint in self.taints if taint.key in keys)

    def taint(self, key: str) -> Taint | None:
        """The first taint with this key, as evidence that it is there."""
        return next(iter(self.taints_of((key,))), None)


class Operator(StrEnum):
    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()


class GateMode(StrEnum):
    NEW_NODES = "NewNodes"
    NEVER = "Never"


class GatePolicy(StrEnum):
    FAIL_OPEN = "FailOpen"
    FAIL_CLOSED = "FailClosed"


class OnReboot(StrEnum):
    IGNORE = "Ignore"
    VERIFY = "Verify"
    HOLD = "Hold"


@dataclass(frozen=True, slots=True)
class GateSpec:
    mode: GateMode = GateMode.NEW_NODES
    max_parallel: int = 100
    percent: bool = True
    """Whether ``max_parallel`` is a percentage of the matching nodes."""
    policy: GatePolicy = GatePolicy.FAIL_OPEN
    timeout: float = 600.0
    on_reboot: OnReboot = OnReboot.VERIFY

    def parallel(self, nodes: int) -> int:
        """How many joining nodes may pull at once where this number of nodes match: at least 1."""
        return _share(self.max_parallel, nodes, percent=self.percent)


def _share(bound: int, nodes: int, *, percent: bool) -> int:
    return max(1, bound * nodes // 100 if percent else bound)


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    max_parallel: int = 10
    percent: bool = True
    """Whether ``max_parallel`` is a percentage of the matching nodes."""
    seeds: int = 1
    fanout: int = 2
    topology_key: str = "topology.kubernetes.io/zone"
    paused: bool = False

    def parallel(self, nodes: int) -> int:
        """How many nodes in service may pull at once where this number match: at least 1."""
        return _share(self.max_parallel, nodes, percent=self.percent)


@dataclass(frozen=True, slots=True)
class RetrySpec:
    limit: int = 6
    minimum: float = 10.0
    maximum: float = 300.0
    timeout: float | None = None
    """Seconds after which an attempt counts as failed; None: never. The kubelet lets the pull
    itself go on, pod or no pod (kubernetes#113606)."""


@dataclass(frozen=True, slots=True)
class Image:
    reference: str
    """Exactly as the user wrote it: the kubelet's credential records are keyed by this string."""
    pull_secrets: tuple[str, ...] = ()
    listed_as: str = ""
    """The normalized name, under which a node that has it lists it."""
    digest: str = ""
    """What its tag has been resolved to, where it is followed; see `Prefetch.refresh`."""
    tagged_as: str = ""
    """The normalized name with the tag, where there is a digest: ``listed_as`` has the digest."""
    source: str = field(default="", compare=False)
    """The workload whose pod template names it (`domain.workloads`); empty: the spec does."""

    @property
    def pinned(self) -> str:
        """The same image by its digest, the name spelled as in ``reference``; empty without one."""
        if not self.digest:
            return ""
        name, colon, rest = self.reference.rpartition(":")
        # What stands behind a colon is the registry's port if there is a slash in it.
        return f"{name if colon and '/' not in rest else self.reference}@{self.digest}"

    def resolved(self, digest: str) -> Image:
        """The image with its tag resolved. One that names its digest already stays as it is."""
        if not digest or self.digest == digest or "@" in self.reference:
            return self
        tagged = self.tagged_as or self.listed_as
        name = tagged[: tagged.rindex(":")] if tagged else ""
        return replace(
            self, digest=digest, tagged_as=tagged, listed_as=f"{name}@{digest}" if name else ""
        )


@dataclass(frozen=True, slots=True)
class RefreshSpec:
    """That tags are followed: a digest that has changed at the registry is a new target."""

    interval: float = 300.0
    """Seconds between two looks."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What came of looking at the registry for new digests."""

    at: float
    """When that was done last."""
    due: float
    """When it is done next, unless a push event comes before."""
    problem: str = ""
    failures: int = 0
    """How many looks in a row could not resolve every tag."""


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One layer of an image, in bytes as the registry sends them."""

    size: int
    """0 for one that is there a second time: it is pulled once."""
    compression: str = "gzip"
    """By its media type: ``gzip``, ``zstd`` or ``none``."""
    key: int = field(default=0, compare=False)
    """64 bits of its digest, by which images that share it are recognised; 0: not known."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """What an image weighs for nodes of one platform, in bytes as the registry sends them."""

    compressed: int
    """Every layer once, and the configuration."""
    largest_layer: int = 0
    layers: tuple[LayerFacts, ...] = ()
    """From the lowest to the topmost; empty where they are not known one by one."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the registry says of one image; nothing where it could not be asked."""

    digest: str = ""
    """What the reference is resolved to: the index's digest, where there is one."""
    sizes: Mapping[str, ImageSize] = field(default_factory=dict)
    """By the platform of the nodes."""
    missing: frozenset[str] = frozenset()
    """Platforms of nodes that the image is not there for."""
    platforms: tuple[str, ...] = ()
    """Those that the image is there for, as far as the registry was asked."""
    problem: str = ""
    """Why something is not known, with what to do about it."""

    @property
    def largest(self) -> ImageSize | None:
        """Of the platforms that nodes have, the one with the most to send."""
        return max(self.sizes.values(), key=lambda size: size.compressed, default=None)


@dataclass(frozen=True, slots=True)
class Group:
    """The images that one puller pod pulls: one set of secrets, at most eight images."""

    key: str
    images: tuple[str, ...]
    pull_secrets: tuple[str, ...]
    pins: Mapping[str, str] = field(default_factory=dict)
    """Of images whose tag is followed, the same by their digest (`Image.pinned`)."""

    @property
    def references(self) -> tuple[str, ...]:
        """Everything that the pod pulls: the tag, so that the node knows it, and then the digest,
        which costs nothing if the tag was right and is the truth if a mirror is behind.
        """
        pairs = ((image, self.pins.get(image)) for image in self.images)
        return tuple(each for pair in pairs for each in pair if each)


@dataclass(frozen=True, slots=True)
class DaemonSetRef:
    """A DaemonSet that joining nodes wait for."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Workloads whose images are wanted besides those of the spec."""

    kind: str
    namespace: str
    selector: tuple[Requirement, ...] = ()

    @property
    def place(self) -> tuple[str, str]:
        """What one list, and one watch, is about: (kind, namespace)."""
        return self.kind, self.namespace


@dataclass(frozen=True)
class Prefetch:
    """One ImagePrefetch. ``invalid`` explains why it cannot be acted on; then the fields of the
    spec mean something only if it could be parsed (`parsed`)."""

    name: str
    uid: str
    version: int = field(compare=False)
    generation: int = 1
    created_at: float = 0.0
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    invalid: tuple[str, str] | None = None
    """(reason in CamelCase, message with the remedy)."""
    images: tuple[Image, ...] = ()
    images_from: tuple[ImageSource, ...] = ()
    searching: bool = False
    """Whether it is not known yet which images ``images_from`` comes to: nothing is begun for it,
    and nothing that nodes have is doubted."""
    unread: bool = False
    """Whether a source in ``images_from`` cannot be read and nothing is remembered of it: there
    may be more images than ``images`` has."""
    pull_secrets: tuple[str, ...] = ()
    """For the images that ``images_from`` comes to."""
    selector: tuple[Requirement, ...] = ()
    namespace: str = ""
    start_after: tuple[DaemonSetRef, ...] = ()
    gate: GateSpec = GateSpec()
    rollout: RolloutSpec = RolloutSpec()
    retry: RetrySpec = RetrySpec()
    keep: bool = True
    """retention.mode Keep: the finished puller pod stays, and so pins the images."""
    max_usage: int = 100
    """Percentage to which pulls may fill a node's image file system; 100: no guard."""
    dry_run: bool = False
    """Whether it is only to be said what would happen."""
    refresh: RefreshSpec | None = None
    """None: a tag is pulled once, whatever becomes of it."""
    status: Mapping[str, object] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        return LABEL_PREFIX + self.name

    @property
    def live(self) -> bool:
        """Whether nodes should hold its images: neither going away, unusable nor a dry run."""
        return not self.deleting and self.invalid is None and not self.dry_run

    @property
    def forbidden(self) -> bool:
        """Whether it asks for what administrators do not allow: it holds no node then, not even
        under FailClosed."""
        return self.invalid is not None and self.invalid[0] == POLICY_VIOLATION

    @cached_property
    def private(self) -> bool:
        """Whether some image is pulled with secrets."""
        return any(image.pull_secrets for image in self.images)

    @property
    def parsed(self) -> bool:
        """Whether the spec could be parsed. A spec that was parsed names an image or a source."""
        return bool(self.images or self.images_from)

    @cached_property
    def target(self) -> str:
        """First 12 hex digits of SHA-256 over the sorted image references, with the digests that
        they were resolved to.
        """
        text = "\n".join(sorted(_identity(image) for image in self.images))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """How the images are spread over puller pods: as few as hashing allows, see `_portions`."""
        by_secrets: dict[tuple[str, ...], list[Image]] = {}
        for image in self.images:
            by_secrets.setdefault(tuple(sorted(image.pull_secrets)), []).append(image)
        return tuple(
            self._group(images, secrets)
            for secrets, all_ in by_secrets.items()
            for images in _portions(all_)
        )

    @cached_property
    def references(self) -> frozenset[str]:
        """Every reference that puller pods pull, see `Group.references`."""
        return frozenset(each for group in self.groups for each in group.references)

    def _group(self, images: Sequence[Image], secrets: tuple[str, ...]) -> Group:
        text = "\n".join((self.uid, *sorted(map(_identity, images)), "", *secrets))
        return Group(
            hashlib.sha256(text.encode()).hexdigest()[:10],
            tuple(image.reference for image in images),
            secrets,
            {image.reference: image.pinned for image in images if image.digest},
        )


def _identity(image: Image) -> str:
    return f"{image.reference}@{image.digest}" if image.digest else image.reference


def _portions(images: Sequence[Image]) -> list[Sequence[Image]]:
    """As many as go into one pod; one whose tag is followed is pulled twice.

    A portion that is too large is split in two by the next bit of each name's hash. So the portion
    of an image depends neither on the order nor on the images of other portions: a new image
    changes one portion, or splits one, and the pods of all others stay as they are.
    """
    place = {image.reference: index for index, image in enumerate(images)}
    hashed = [
        (int.from_bytes(hashlib.sha256(image.reference.encode()).digest()), image)
        for image in images
    ]
    portions = [
        sorted(portion, key=lambda image: place[image.reference])
        for portion in _split(hashed, HASH_BITS)
    ]
    return sorted(portions, key=lambda portion: place[portion[0].reference])


def _split(hashed: Sequence[tuple[int, Image]], bits: int) -> Iterator[list[Image]]:
    pulls = sum(2 if image.digest else 1 for _, image in hashed)
    if pulls <= IMAGES_PER_POD or len(hashed) == 1 or not bits:
        if hashed:
            yield [image for _, image in hashed]
        return
    for bit in (0, 1):
        yield from _split([each for each in hashed if each[0] >> (bits - 1) & 1 == bit], bits - 1)


@dataclass(frozen=True, slots=True)
class Pod:
    """One puller pod, as read back from the cluster."""

    name: str
    namespace: str
    uid: str
    version: int = field(compare=False)
    node: str = ""
    prefetch: str = ""
    group: str = ""
    images: tuple[str, ...] = ()
    observed: str = ""
    """The node's identity when the pod was made."""
    phase: str = "Pending"
    """Succeeded means that every image was pulled, whatever became of the containers after that."""
    reason: str = ""
    message: str = ""
    waiting: str = ""
    """The reason a container waits for, when one does: ErrImagePull, ImagePullBackOff, ..."""
    waiting_message: str = ""
    waiting_image: str = ""
    """The image it waits for, where the status says which."""
    created_at: float = 0.0
    began: bool = False
    """Whether a container of it has been created."""
    finished_at: float | None = None
    deleting: bool = False
    owned: bool = True
    """Whether its Node owns it, as every puller pod's does. Labels are set by anybody, also by
    accident: what only bears them is not ours, proves nothing and is left alone."""

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @property
    def machine(self) -> str:
        """The uid of the Node that it was made for; its name may be another's by now."""
        return self.observed.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Gate:
    """The NodeGate."""

    uid: str
    version: int = field(compare=False)
    taint_key: str = ""
    suspend: bool = False
    silence: float = 300.0
    deleting: bool = False
    status: Mapping[str, object] = field(default_factory=dict, compare=False)
    created: str = ""


class NodeState(StrEnum):
    """Where a node stands with one ImagePrefetch."""

    CACHED = "cached"
    PULLING = "pulling"
    PENDING = "pending"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Attempts:
    """What is remembered of the failed attempts of one group on one node.

    In memory only: an operator that restarts tries again at once, which is harmless.
    """

    count: int = 0
    next_at: float = 0.0
    reason: str = ""
    message: str = ""
    image: str = ""
    permanent: bool = False
    at: float = 0.0
