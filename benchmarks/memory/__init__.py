"""The operator's event loop with an API server in memory, in virtual time.

The real `App` runs: its store, queues, reconcilers, actor, resync, election and `kube.client`. The
API server and the transport are those of the simulation (`tests.simulation`), and each Node is as
large as in a real cluster. kopf does not run: the operator's client watches instead (`process`).
The figures therefore do not include the CPU time of kopf for each event, nor of sockets and TLS.
"""
