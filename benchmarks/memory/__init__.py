"""The operator's event loop with an API server in memory, in virtual time.

The real `App` runs: its store, queues, reconcilers, actor, resync, election and `kube.client`. The
API server and the transport are those of the simulation (`tests.simulation`), and each Node is as
large as in a real cluster. kopf, which watches the operator's own kinds only, does not run: the
operator's client watches them instead (`process`). The figures do not include the CPU time of
sockets and TLS.
"""
