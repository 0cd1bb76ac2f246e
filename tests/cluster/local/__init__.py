"""The provider `local`: Kubernetes on this machine, in its own namespaces and cgroups."""
