"""The provider `local`: Kubernetes on this machine, in namespaces and cgroups of its own."""
