"""Bounds of the promises: within how many seconds, and how often."""

from __future__ import annotations

LAG = 15.0
"""Seconds for which the operator may act on what was replaced: watches and requests take time."""
NOT_READY_FOR = 170.0
"""Seconds after which a node that is not Ready may be left out of what pulls."""
SAYS = 300.0
"""Seconds within which a kubelet says which images have gone."""
DEADLINE = 890.0
"""Seconds after which a pull may be given up, and its slot be given to another."""
RELEASE = 6.0
"""Seconds from a node that has everything to its release."""
RELEASE_AFTER_FAULT = 16.0
"""The same from the end of an outage that the leader has survived: the longest back-off of a
release is a few seconds, and the watch may have to begin anew."""
TAKEOVER = 60.0
LATE = 40.0
"""Seconds by which a timeout may be executed late, and be early by the wrong clocks of nodes."""
LABELLED = 90.0
"""Seconds from the success of the last puller pod to the label of a node in service."""
PROGRESS = 780.0
"""Seconds within which a prefetch that has work must get on: the longest back-off (300 s, and a
tenth), twice, and a pull."""
ROOM = 90.0
"""Seconds for which a node may be said to have no room for images that it lists already."""
CONVERGED = 180.0
DELETED = 150.0
STILL_LATE = 30.0
"""Seconds after a change of the lag in which events may arrive that were sent before it."""
STORM = 14
"""Puller pods for one group of one node in 10 minutes."""
LATE_WATCH = 4.0
"""Seconds of lag from which a failure that is seen does not prove that no pull is in flight."""
REPEATED = 30
"""Writes of one operator to one object in a minute."""
REFUSED = 40
"""Refused writes of the operator to one object in 10 minutes."""
TRIED_AGAIN = 360.0
"""Seconds for which a refusal for want of room may stand: the longest back-off (300 s, and a
tenth), by a figure of the disk that is 30 s old."""
SHOWN = 400.0
FIRST_POD = 12.0
"""Seconds from a new prefetch to its first puller pod: the registry is waited for 5 s."""
BLIND = 75.0
"""Seconds until it is noticed that the connection of a watch is dead: bookmarks come every 60 s."""
IDLE = 75.0
"""Seconds for which a held node that has everything may lack puller pods that say so."""
STATUS_BYTES = 16 * 1024
NAMESPACES = ("imagegate-system", "team-a", "team-b")
"""The puller namespaces that the operator is allowed."""
