"""Bounds of the promises: within how many seconds, and how often."""

from __future__ import annotations

LAG = 15.0
"""Seconds for which the operator may act on an old version: watches and requests take time."""
NOT_READY_FOR = 170.0
"""Seconds after which a node that is not Ready no longer counts against `maxParallel`."""
LISTED = 300.0
"""Seconds within which a kubelet reports that images were removed."""
DEADLINE = 890.0
"""Seconds after which the operator may stop a pull and give its slot to another node."""
RELEASE = 6.0
"""Seconds from the last image on a node to the removal of its taint."""
RELEASE_AFTER_FAULT = 16.0
"""The same from the end of an outage, if the leader kept its lease: a release is retried after a
few seconds, and the watch may have to start again."""
TAKEOVER = 60.0
"""Seconds from the loss of a leader to the first writes of the next leader."""
LATE = 40.0
"""Seconds by which a timeout may be late, or early because the clocks of nodes are wrong."""
LABELLED = 90.0
"""Seconds from the success of the last puller pod to the label on a node in service."""
PROGRESS = 780.0
"""Seconds within which a prefetch with waiting nodes must make progress: two times the longest
back-off (300 s plus 10 % jitter), and a pull."""
ROOM = 90.0
"""Seconds for which a status may report DiskFull for a node that lists the images already."""
CONVERGED = 180.0
"""Seconds after the last change of the cluster from which a status must be exact."""
DELETED = 150.0
"""Seconds within which the operator must remove its finalizer from a deleted prefetch."""
STILL_LATE = 30.0
"""Seconds after a change of the lag within which earlier events may still arrive."""
STORM = 14
"""Puller pods for one group of images on one node in 10 minutes."""
LATE_WATCH = 4.0
"""Seconds of lag from which a reported failure does not prove that no pull is in flight."""
REPEATED = 30
"""Writes of one operator to one object in a minute."""
READABLE = 60.0
"""Seconds within which the operator notices that it may read a namespace again: it asks every
30 s."""
REFUSED = 40
"""Refused writes of the operator to one object in 10 minutes."""
RETRIED = 360.0
"""Seconds after which the disk guard must check a refused node again: the longest back-off (300 s
plus 10 % jitter), and 30 s for which the measured disk usage may be old."""
SHOWN = 400.0
"""Seconds within which a status must report that puller pods are refused."""
FIRST_POD = 12.0
"""Seconds from a new prefetch to its first puller pod: the operator waits 5 s for the registry."""
DEAD_WATCH = 75.0
"""Seconds until the operator notices a dead watch connection: bookmarks come every 60 s."""
IDLE = 75.0
"""Seconds for which a node with all images may be held until its puller pods succeed."""
STATUS_BYTES = 16 * 1024
"""The largest status of a prefetch."""
NAMESPACES = ("imagegate-system", "team-a", "team-b")
"""The namespaces in which the operator may create puller pods."""
