"""Creates the reconcilers of the control loop: for nodes, prefetches, dry runs and disks."""

from __future__ import annotations

from imagegate.metrics import Metrics
from imagegate.runtime.cluster import Cluster
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.queues import Queues
from imagegate.runtime.reconcile.actor import Actor
from imagegate.runtime.reconcile.changes import Changes
from imagegate.runtime.reconcile.deletions import Deletions
from imagegate.runtime.reconcile.disks import DiskReader
from imagegate.runtime.reconcile.forecasts import Forecaster
from imagegate.runtime.reconcile.node_views import NodeViews
from imagegate.runtime.reconcile.nodes import NodeReconciler
from imagegate.runtime.reconcile.prefetches import PrefetchReconciler
from imagegate.runtime.reconcile.slots import Slots
from imagegate.runtime.reconcile.statuses import StatusWriter


class Controllers:
    """A node's key observes (`node_views`), decides (`domain.node`) and acts (`actor`) for that
    node alone. A prefetch's key grants slots and writes the status.
    """

    def __init__(
        self, cluster: Cluster, known: Knowledge, queues: Queues, changes: Changes, metrics: Metrics
    ) -> None:
        self.slots = slots = Slots(known, queues.nodes, metrics)
        self.views = NodeViews(known, slots)
        actor = Actor(cluster, known, queues.nodes, metrics)
        self.nodes = NodeReconciler(known, self.views, slots, actor, queues)
        statuses = StatusWriter(cluster, known, changes)
        deletions = Deletions(cluster, known, queues, metrics)
        self.prefetches = PrefetchReconciler(known, slots, statuses, deletions, queues)
        self.forecaster = Forecaster(cluster.nodes, known, statuses, queues.forecasts)
        self.disks = DiskReader(cluster.nodes, known, queues.disks, changes)
