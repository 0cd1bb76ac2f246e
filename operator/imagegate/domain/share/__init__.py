"""The decision about one share: the state of one node for one ImagePrefetch.

The steps, in the order of a node's life. A step calls only steps further down this list:

1. `assess`: whether the node takes part, and which step comes next.
2. `superseded`: puller pods that are not needed any more are deleted.
3. `caching`: the node does not hold the images yet.
4. `in_service`: the node holds them.
5. `drift`: the node has lost some of them.
6. `attempt`: one puller pod that has not succeeded: it pulls, fails, or takes too long.
7. `start`: the puller pods that are missing are created.
8. `room`: whether the images fit on the node's disk.

All of them work on one `decision.ShareDecision`. `pods` sorts the puller pods of the share,
`known` has the facts, and `outcome` has the result, which is reused while it holds.
"""

from imagegate.domain.share.known import Share, Site, labelled, no_image, same_life

__all__ = ["Share", "Site", "labelled", "no_image", "same_life"]
