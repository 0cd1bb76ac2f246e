"""The puller pods of a share, sorted by the present target and the present boot."""

from __future__ import annotations

from dataclasses import dataclass, field

from imagegate.domain.facts import Node, Pod
from imagegate.domain.share.known import Share, same_life


@dataclass(slots=True)
class Pods:
    current: dict[str, Pod] = field(default_factory=dict)
    """The pods of the present target and boot, by group key."""
    superseded: list[Pod] = field(default_factory=list)
    departed: list[Pod] = field(default_factory=list)
    """Pods of a deleted machine that had the same name. The garbage collector deletes them with
    their Node. Until then they are ignored, because the new machine would inherit a slot."""
    pins: list[Pod] = field(default_factory=list)
    """The superseded pods that alone pin a wanted image, see `_pins`."""

    @property
    def busy(self) -> bool:
        """Whether a pod of this machine pulls or may pull."""
        return any(not pod.finished for pod in (*self.current.values(), *self.superseded))

    @classmethod
    def sort(cls, share: Share, node: Node) -> Pods:
        groups = {group.key for group in share.prefetch.groups}
        pods = cls()
        for pod in sorted(share.pods, key=lambda p: (p.created_at, p.name)):
            if pod.machine != node.uid:
                pods.departed.append(pod)
            elif pod.namespace != share.prefetch.namespace:
                pods.superseded.append(pod)
            elif pod.group in groups and (
                same_life(pod.observed, node, share.prefetch) and not interrupted(pod, node)
            ):
                earlier = pods.current.get(pod.group)
                if earlier is not None:
                    pods.superseded.append(earlier)
                pods.current[pod.group] = pod
            else:
                pods.superseded.append(pod)
        pods.pins = _pins(pods, share, node)
        return pods


def interrupted(pod: Pod, node: Node) -> bool:
    """Whether the node rebooted after the pod's container was created and before the pod finished.
    With restartPolicy Never the kubelet leaves such a pod Pending for ever (kuberuntime_util.go,
    PodSandboxChanged). A pod that had no container yet is started again by the kubelet, and so is
    its pull.
    """
    return pod.began and not pod.finished and pod.observed != node.identity


def _pins(pods: Pods, share: Share, node: Node) -> list[Pod]:
    """The finished pods of other groups that alone pin an image that is wanted.

    Groups change while the target stays (a secret was renamed, or an earlier version of the
    operator spread the images in another way). The existing pods pin the images as well, so a pod
    is deleted only when another finished pod pins all of its images.
    """
    if not share.prefetch.keep or not pods.superseded:
        return []
    wanted = share.prefetch.references
    pinned = {
        reference
        for pod in pods.current.values()
        if pod.phase == "Succeeded" and not pod.deleting
        for reference in pod.images
    }
    pins: list[Pod] = []
    for pod in reversed(pods.superseded):
        if pod.phase != "Succeeded" or pod.deleting:
            continue
        if not same_life(pod.observed, node, share.prefetch) or wanted.isdisjoint(pod.images):
            continue
        if not pinned.issuperset(wanted.intersection(pod.images)):
            pins.append(pod)
            pinned.update(pod.images)
    return pins
