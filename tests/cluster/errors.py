"""What goes wrong in the harness, in words that say what, where and what to do."""


class ClusterError(Exception):
    """The cluster could not do what was asked; the message is meant for a person."""


class Unsupported(ClusterError):
    """The provider has no such ability (see `Capability`); tests skip on it."""
