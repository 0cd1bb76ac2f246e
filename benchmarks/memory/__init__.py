"""The operator's own loop, fed by an API server in memory, in virtual time.

`App` runs as it is: its store, queues, reconcilers, actor, resync, election and `kube.client`. The
API server and the transport are the simulation's (`tests.simulation`), with Nodes of the size of
real ones. kopf is not there: the operator's client does its watches (`process`), so that what kopf
costs for each event of a Node is not in these figures. Neither are sockets and TLS.
"""
