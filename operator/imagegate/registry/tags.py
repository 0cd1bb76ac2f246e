"""Reads the pages of a list of tags (OCI distribution specification, "Listing Tags").

The list is untrusted: a registry decides how many pages there are and where the next page is. So
pages and tags have a limit, and only the query of the next page's address is used.
"""

from __future__ import annotations

import re
from typing import Final

from yarl import URL

from imagegate.api.references import MAX_TAG
from imagegate.registry.errors import InvalidAnswer

PAGE: Final = 1000
"""Tags that are requested for each page. Many registries send fewer."""
MAX_PAGE: Final = 4 * 1024 * 1024
"""Largest page in bytes. Some registries send all tags in one page."""
MOST_PAGES: Final = 500
MOST_TAGS: Final = 50_000
"""Largest number of tags of one repository: about 5 MB of memory while they are compared."""
MAX_LINK: Final = 8 * 1024
"""Longest `Link` header in characters."""

_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_NEXT: Final = re.compile(r'\s*<([^<>]*)>\s*;\s*rel\s*=\s*"?next"?\s*(?:[;,].*)?', re.DOTALL)
_REMEDY: Final = "delete old tags, for example by a retention policy of the registry"


class Pages:
    """The tags of all pages so far."""

    def __init__(self, registry: str, path: str) -> None:
        self._registry = registry
        self._path = path
        self._tags: dict[str, None] = {}
        self._pages = 0

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self._tags)

    def add(self, content: object, link: str | None, url: URL) -> URL | None:
        """Add a page, and return the URL of the next one; None: it was the last.

        ``content`` is the parsed answer to ``url``, and ``link`` its `Link` header. Raises
        InvalidAnswer.
        """
        found = content.get("tags") if isinstance(content, dict) else ""
        if content is None:
            raise self._invalid(
                f"is no JSON, or has more than {MOST_TAGS} tags in one page", _REMEDY
            )
        # A repository without tags has null (Docker Distribution).
        if found is not None and not isinstance(found, list):
            raise self._invalid(
                "has no tags", "check that this is a registry, and no login page or proxy before it"
            )
        self._tags.update((tag, None) for tag in found or () if _is_tag(tag))
        self._pages += 1
        following = self._next(link, url)
        if len(self._tags) > MOST_TAGS or (following is not None and self._pages >= MOST_PAGES):
            raise self._invalid(
                f"has more than {MOST_TAGS} tags or {MOST_PAGES} pages, and no more are read",
                _REMEDY,
            )
        return following

    def _next(self, link: str | None, url: URL) -> URL | None:
        match = _NEXT.fullmatch(link) if link and len(link) <= MAX_LINK else None
        if match is None:
            return None
        query = match[1].partition("?")[2].partition("#")[0]
        following = URL(f"{url.with_query(None)}?{query}", encoded=True) if query else url
        if following == url:
            raise self._invalid("names itself as the next page", "check the registry, or its proxy")
        return following

    def _invalid(self, problem: str, remedy: str) -> InvalidAnswer:
        return InvalidAnswer(self._registry, f"the list of tags of {self._path} {problem}", remedy)


def _is_tag(tag: object) -> bool:
    """Whether it can be pulled. Anything else is ignored, like tags that no pattern matches."""
    return isinstance(tag, str) and len(tag) <= MAX_TAG and _TAG.fullmatch(tag) is not None
