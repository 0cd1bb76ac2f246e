"""Builds the manifests of puller pods, and reads puller pods into facts. Pure: no API, no clock."""
