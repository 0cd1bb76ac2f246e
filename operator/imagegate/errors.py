"""The root of every error that this project raises on purpose."""


class ImagegateError(Exception):
    """Its text is for people: what failed, where, and where possible what to do."""
