"""Filters of tags, with the words of Flux' ImagePolicy: a pattern, and the text by which tags are
compared.

The patterns are those of RE2, as in Flux and in the API server (Go's `regexp`). RE2 needs time that
grows linearly with the text, whatever the pattern is. Python's `re` could be made to run for hours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import re2

from imagegate.errors import ImagegateError

MAX_PATTERN: Final = 256
"""Longest pattern in characters."""
MAX_EXTRACT: Final = 128
"""Longest template in characters."""
MAX_KEY: Final = 256
"""Longest extracted text in characters. A template may repeat a group many times."""
_MEMORY: Final = 1 << 20
"""Bytes that RE2 uses for one pattern at most."""

_GROUP: Final = re.compile(r"\$(?:(\$)|\{([A-Za-z0-9_]+)\}|([A-Za-z0-9_]+))")
NAMED: Final = "[$][{]?[A-Za-z_][A-Za-z0-9_]*"
"""A reference to a group by its name."""
REFERS: Final = "[$]([{][A-Za-z0-9_]+[}]|[A-Za-z0-9_])"
"""A reference to a group by its name or number."""


class InvalidPattern(ImagegateError, ValueError):
    """The text is not a pattern of RE2."""


@dataclass(frozen=True, slots=True)
class TagFilter:
    """Tags that match `pattern`. They are compared by `extract`, or by the whole tag without it."""

    pattern: str = ""
    extract: str = ""
    """A template as in Go: `$ts`, `${ts}` and `$1` stand for what a group has matched, `$$` for a
    dollar sign. A group that does not exist or has matched nothing is empty."""

    def key(self, tag: str) -> str | None:
        """The text by which this tag is compared; None: the tag does not match. Raises
        InvalidPattern.
        """
        if not self.pattern:
            return tag
        found = compiled(self.pattern).search(tag)
        if found is None:
            return None
        if not self.extract:
            return tag
        return _GROUP.sub(lambda reference: _group(found, reference), self.extract)[: MAX_KEY + 1]


def _group(found: Any, reference: re.Match[str]) -> str:
    dollar, braced, bare = reference.groups()
    if dollar:
        return "$"
    name = braced or bare
    # As in Go's `regexp.Expand`, which knows no number with a leading zero.
    number = name.isdecimal() and (name == "0" or not name.startswith("0"))
    try:
        return found[int(name) if number else name] or ""
    except (IndexError, KeyError, ValueError, OverflowError):
        return ""


@lru_cache(maxsize=512)
def compiled(pattern: str) -> Any:
    """The compiled pattern. Raises InvalidPattern."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0] if error.args else ""
        text = why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)
        raise InvalidPattern(
            f'"{pattern}" is not a regular expression of RE2: {text}; see'
            " github.com/google/re2/wiki/Syntax"
        ) from None


def unknown_groups(pattern: str, extract: str) -> list[str]:
    """The names in the template that the pattern has no group for."""
    names = (found.lstrip("${") for found in re.findall(NAMED, extract))
    return [name for name in names if f"<{name}>" not in pattern]
