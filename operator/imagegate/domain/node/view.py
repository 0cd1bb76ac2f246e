"""The facts for the decision about one node, the decision while it is made, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imagegate.domain.actions import Action, Standing
from imagegate.domain.disk import Usage
from imagegate.domain.facts import DaemonSetRef, Gate, Listed, Node, Pod, Taint
from imagegate.domain.gate import Problem, Verdict
from imagegate.domain.share.known import Share
from imagegate.domain.share.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Decided:
    """What the last decision about a node leaves for the next: the outcomes that may be reused, and
    the facts that all of them have in common.
    """

    node: Node
    site: tuple[object, ...]
    """See `known.Site.compared`."""
    outcomes: Mapping[str, Outcome]
    """By the name of the prefetch."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """Everything that a decision about one node depends on."""

    node: Node
    taint_key: str
    """The gate's key. It is known even after the NodeGate was deleted, because nodes have to be
    released then."""
    gate: Gate | None
    earlier_keys: frozenset[str] = frozenset()
    """Keys that the gate had before: a node that has a taint with one of them is released."""
    shares: tuple[Share, ...] = ()
    """One per live prefetch whose selector matches the node, in the order of their names."""
    orphans: tuple[Pod, ...] = ()
    """Puller pods on this node that belong to no live, matching prefetch."""
    frozen: frozenset[str] = field(default_factory=frozenset)
    """Names of prefetches whose spec cannot be acted on: their labels and pods stay as they are."""
    problems: tuple[Problem, ...] = ()
    """The prefetches that select this node and whose spec cannot be acted on."""
    first_ready: float = 0.0
    """When this process first saw the node Ready."""
    unready_since: float | None = None
    """Since when this process has seen the node not Ready; None: it is Ready."""
    labels_since: float | None = None
    """Since when our labels on the node have not changed, as far as this process knows; None: not
    known, so a label is not checked against the listed images."""
    seen: Mapping[str, Listed] = field(default_factory=dict)
    """The images that the node has listed since its labels last changed, by name."""
    usage: Usage | None = None
    """The node's image file system; None: not read lately."""
    taints_by_watch: bool = False
    """Whether the operator itself taints new nodes, because no admission policy is served."""
    control_planes: bool = False
    """Whether it also taints new nodes of the control plane."""
    before: Decided | None = None
    """The last decision about this node. It makes this decision cheaper, and never another one."""

    @property
    def taints(self) -> tuple[Taint, ...]:
        """The gate's taints on the node."""
        return self.node.taints_of((self.taint_key,))

    @property
    def outdated(self) -> tuple[Taint, ...]:
        """The gate's taints with an earlier key. Nothing else would ever remove them."""
        return self.node.taints_of(self.earlier_keys - {self.taint_key})


@dataclass(frozen=True, slots=True)
class NodeDecision:
    """The facts about a node, and the conclusions of the steps."""

    view: NodeView
    now: float
    shares: tuple[Outcome, ...]
    verdict: Verdict | None
    """The gate's verdict. None: the node has no gate taint, or is being deleted."""

    @property
    def node(self) -> Node:
        return self.view.node


@dataclass(frozen=True, slots=True)
class NodePlan:
    actions: tuple[Action, ...] = ()
    requeue_at: float | None = None
    standings: Mapping[str, Standing] = field(default_factory=dict)
    held: bool = False
    """Whether the gate taint is on the node and stays."""
    holding: str = ""
    """Why the taint stays, as text for people."""
    released_by: float | None = None
    """When the gate releases a held node even without the images (`Verdict.latest`)."""
    wants_usage: bool = False
    """Whether more could be decided if the node's disk usage were known."""
    awaits: frozenset[DaemonSetRef] = frozenset()
    """The DaemonSets that must be Ready on the node before a pull that is due may start."""
    decided: Decided | None = field(default=None, compare=False)
    """For `NodeView.before` of the next decision about this node."""
