"""Requests to image registries: digests, platforms, layers.

`keychain` finds the credentials that the kubelet would use, `client` sends requests with them, and
`manifests` reads the answers. This package does not depend on the cluster.
"""
