"""Puller pods: how one is built and how one is read back. Pure; no cluster, no clock."""
