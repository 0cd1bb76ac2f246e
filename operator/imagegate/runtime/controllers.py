"""The control loop: what works on nodes, on prefetches, on dry runs and on disks."""

from __future__ import annotations

from imagegate.metrics import Metrics
from imagegate.runtime.actor import Actor
from imagegate.runtime.changes import Changes
from imagegate.runtime.cluster import Cluster
from imagegate.runtime.deletions import Deletions
from imagegate.runtime.disk_reader import DiskReader
from imagegate.runtime.forecaster import Forecaster
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.node_reconciler import NodeReconciler
from imagegate.runtime.node_views import NodeViews
from imagegate.runtime.prefetch_reconciler import PrefetchReconciler
from imagegate.runtime.queues import Queues
from imagegate.runtime.slots import Slots
from imagegate.runtime.status_writer import StatusWriter


class Controllers:
    """How they work together: a node's key observes (`node_views`), decides (`domain.node`) and
    acts (`actor`) for that node alone; a prefetch's key grants slots and writes the status.
    """

    def __init__(
        self,
        cluster: Cluster,
        known: Knowledge,
        queues: Queues,
        changes: Changes,
        metrics: Metrics,
    ) -> None:
        slots = Slots(known, queues.nodes, metrics)
        self.views = NodeViews(known, slots)
        actor = Actor(cluster, known, queues.nodes, metrics)
        self.nodes = NodeReconciler(known, self.views, slots, actor, queues)
        statuses = StatusWriter(cluster, known, changes)
        deletions = Deletions(cluster, known, queues, metrics)
        self.prefetches = PrefetchReconciler(known, slots, statuses, deletions, queues)
        self.forecaster = Forecaster(known, statuses, queues.forecasts)
        self.disks = DiskReader(cluster.nodes, known, queues.disks, changes)
