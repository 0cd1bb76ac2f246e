"""The base class of all errors that this project raises."""


class ImagegateError(Exception):
    """The text is for people: what failed, where, and if possible the remedy."""
