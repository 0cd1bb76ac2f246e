"""The errors of the harness. Their messages name the problem, its place and the remedy."""


class ClusterError(Exception):
    """The cluster could not do the requested action; the message is for a person."""


class Unsupported(ClusterError):
    """The provider does not have the capability (see `Capability`); the test is skipped."""
