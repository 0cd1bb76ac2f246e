"""What image registries know: digests, platforms, layers.

`keychain` finds the credentials that the kubelet would use, `client` asks the registry with them,
`manifests` reads what it answers. Nothing here knows the cluster.
"""
