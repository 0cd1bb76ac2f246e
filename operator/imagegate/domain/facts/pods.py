"""Puller pods, and the attempts that are remembered."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    """Succeeded means that every image was pulled, even if a container failed after that."""
    reason: str = ""
    message: str = ""
    waiting: str = ""
    """Why a container waits: ErrImagePull, ImagePullBackOff, ...; empty: no container waits."""
    waiting_message: str = ""
    waiting_image: str = ""
    """The image that the container waits for, if the status names it."""
    created_at: float = 0.0
    began: bool = False
    """Whether a container of it has been created."""
    finished_at: float | None = None
    deleting: bool = False
    owned: bool = True
    """Whether its Node owns it, as with every puller pod. A pod that only has our labels is not a
    puller pod, because any user can set labels, even by accident. It proves nothing, and is not
    deleted."""

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @property
    def machine(self) -> str:
        """The uid of the Node that it was made for; by now another Node may have the same name."""
        return self.observed.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Attempts:
    """The remembered failed attempts of one group on one node.

    In memory only: after a restart the operator tries again immediately, which is harmless.
    """

    count: int = 0
    next_at: float = 0.0
    reason: str = ""
    message: str = ""
    image: str = ""
    permanent: bool = False
    at: float = 0.0
    pods: int = 0
    """How many puller pods have come to an end. The next pod is named by this number (`number`) and
    not by ``count``, because the answer to a create can be lost. The next create then meets the pod
    that exists all the same, and makes no second pod."""

    @property
    def number(self) -> int:
        return self.pods + 1
