"""The operator against a real API server and etcd, with simulated nodes, beside a bare client.

The operator runs as a process of this machine with the arguments of the chart's Deployment, the
rights of its service account and the address of the API server inside the cluster. So its CPU time
and memory are those of one process, and no kubelet and no container runtime run beside it. kwok
plays the kubelets: a puller pod succeeds a fixed time after its creation.

First the operator runs all scenarios (`scenarios`), and the API server's audit log records its
requests (`audit`). Then the operator is stopped, and a bare client makes the same writes again, in
the same order, from the same state of the same cluster (`plan`, `player`): the floor.
"""
