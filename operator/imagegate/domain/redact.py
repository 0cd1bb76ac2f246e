"""Removes signatures and logins from messages of container runtimes and registries.

A registry redirects to its store with a signed URL: everybody who reads the URL can fetch the blob.
Runtimes put whole URLs into their messages, and the messages go into statuses, Events and logs.
"""

from __future__ import annotations

import re

LONGEST = 8 * 1024
"""Characters of a message that are kept; the rest is cut off."""

_END = r"""[^\s"'<>]"""
_LOGIN = re.compile(r"""://[^\s/?#"'<>]{0,2000}@""")
_QUERY = re.compile(rf"""(://[^\s?"'<>]{{0,2000}}\?)({_END}*)""")
_PARAMETER = re.compile(
    r"\b((?:X-(?:Amz|Goog|Ms|Oss)-[a-z-]{1,40}|Signature|Sig|AWSAccessKeyId|OSSAccessKeyId|Key-Pair-Id"
    r"|Policy|access_token|refresh_token|password)=)[^\s&\"'<>]+",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"\b((?:Proxy-)?Authorization|X-Amz-[a-z-]{1,40}|Cookie|Set-Cookie)(\"?\s{0,4}:\s{0,4})[^\r\n\"]+",
    re.IGNORECASE,
)
_JWT = re.compile(r"\beyJ[\w-]{10,}\.[\w.-]+")


def redact(message: str) -> str:
    """The message without logins in URLs, and with `…` for the queries of URLs, for signatures and
    for credentials.
    """
    message = message[:LONGEST]
    message = _LOGIN.sub("://", message)
    message = _QUERY.sub(_without_query, message)
    message = _PARAMETER.sub(r"\1…", message)
    message = _HEADER.sub(r"\1\2…", message)
    return _JWT.sub("…", message)


def _without_query(found: re.Match[str]) -> str:
    """Keeps the punctuation after a URL, because the patterns for failure classes need it."""
    query = found[2]
    return f"{found[1]}…{query[len(query.rstrip(':;,.)]}')) :]}"
