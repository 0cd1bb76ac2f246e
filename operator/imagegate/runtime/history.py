"""What this process has seen happen to nodes and pods, and the objects themselves do not say.

It is lost at a restart, so a decision that uses it must be safe without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from imagegate.domain.facts import LABEL_PREFIX, Listed, Node, Pod
from imagegate.domain.messages import PULL_ERRORS
from imagegate.runtime.clock import Clock


class NodeHistory:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first_ready: dict[str, tuple[str, float]] = {}
        self._unready_since: dict[str, tuple[str, float]] = {}
        self._labels_since: dict[str, tuple[object, float]] = {}
        self._listed: dict[str, Mapping[str, Listed]] = {}

    def first_ready(self, node: Node) -> float:
        """When this process first saw the node Ready since its last boot, or, for a node in
        service, since it was last not Ready. The current time if that is not known.
        """
        known = self._first_ready.get(node.name)
        return known[1] if known and known[0] == node.identity else self._clock.now()

    def unready_since(self, node: Node) -> float | None:
        """Since when this process has seen the machine not Ready; None: it is Ready."""
        known = self._unready_since.get(node.name)
        return known[1] if known and known[0] == node.uid and not node.ready else None

    def labels_since(self, node: Node) -> float | None:
        """When the operator's labels on the node last changed; None: it has none."""
        known = self._labels_since.get(node.name)
        return known[1] if known is not None else None

    def listed(self, node: Node) -> Mapping[str, Listed]:
        """The wanted names that the node has listed since its label for them last changed."""
        return self._listed.get(node.name, {})

    def see(self, node: Node, old: Node | None, relabelled: Collection[str]) -> None:
        """``relabelled``: the names of the images whose label on the node has changed. That the
        node listed them earlier proves nothing about the new labels.
        """
        if node.ready and self._first_ready.get(node.name, ("",))[0] != node.identity:
            self._first_ready[node.name] = (node.identity, self._clock.now())
        if node.ready:
            self._unready_since.pop(node.name, None)
        else:
            if self._unready_since.get(node.name, ("",))[0] != node.uid:
                self._unready_since[node.name] = (node.uid, self._clock.now())
            if node.observed:
                # A node in service is held again when it comes back: the timeout starts then.
                self._first_ready.pop(node.name, None)
        if old is None or old.labels != node.labels or old.identity != node.identity:
            self._note_labels(node)
        self._note_listed(node, old, relabelled)

    def forget(self, name: str) -> None:
        self._first_ready.pop(name, None)
        self._unready_since.pop(name, None)
        self._labels_since.pop(name, None)
        self._listed.pop(name, None)

    def _note_labels(self, node: Node) -> None:
        ours = sorted(item for item in node.labels.items() if item[0].startswith(LABEL_PREFIX))
        if not ours:
            self._labels_since.pop(node.name, None)
            return
        known, state = self._labels_since.get(node.name), (node.identity, ours)
        if known is None or known[0] != state:
            self._labels_since[node.name] = (state, self._clock.now())

    def _note_listed(self, node: Node, old: Node | None, relabelled: Collection[str]) -> None:
        """Remember which names the node has listed, because only a listed name can be missing."""
        seen = self._listed.get(node.name, {})
        if old is None or old.identity != node.identity:
            seen = {}
        kept = (seen.keys() & node.wanted) - set(relabelled)
        seen = {**{name: seen[name] for name in kept}, **node.listed}
        self._listed[node.name] = node.listed if seen == node.listed else seen


class PodHistory:
    """By the pods' uids."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pulled: dict[str, frozenset[str]] = {}
        self._failed_at: dict[str, float] = {}
        self._finished_at: dict[str, float] = {}

    @property
    def pulled(self) -> Mapping[str, frozenset[str]]:
        """The images that the kubelet reported as pulled for a pod."""
        return self._pulled

    @property
    def failed_at(self) -> Mapping[str, float]:
        """When a watch last reported to this process that a pod's pull has failed."""
        return self._failed_at

    @property
    def finished_at(self) -> Mapping[str, float]:
        """When this process first saw a pod finished. This time never changes."""
        return self._finished_at

    def see(self, pod: Pod, old: Pod | None, *, live: bool) -> None:
        """``live``: the change was reported by a watch, and not found in a list."""
        if pod.finished:
            self._finished_at.setdefault(pod.uid, self._clock.now())
        if live and _started_failing(old, pod):
            self._failed_at[pod.uid] = self._clock.now()

    def see_pulled(self, pod: Pod, image: str) -> bool:
        """A kubelet has reported an image of the pod as pulled. False where that was known."""
        known = self._pulled.get(pod.uid, frozenset())
        if image in known:
            return False
        self._pulled[pod.uid] = known | {image}
        return True

    def forget(self, uid: str) -> None:
        self._pulled.pop(uid, None)
        self._failed_at.pop(uid, None)
        self._finished_at.pop(uid, None)


def _started_failing(old: Pod | None, pod: Pod) -> bool:
    """Whether a pull was just reported as failed (again).

    True for both reasons: ErrImagePull right after the attempt, and ImagePullBackOff when the
    kubelet refuses to try again yet. In both cases nothing is being pulled.
    """
    if pod.waiting not in PULL_ERRORS:
        return False
    return old is None or (old.waiting, old.waiting_message) != (pod.waiting, pod.waiting_message)
