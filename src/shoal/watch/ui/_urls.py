"""Make the addresses of pages, wherever the application is mounted.

A run's address has its path as text (``shoal.watch.path_text``), in which parts are
percent-encoded. Servers decode addresses once before an application sees them, so the text is
encoded once more: a key with a slash stays one part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final
from urllib.parse import quote, urlencode

from starlette.types import Scope

from shoal._events.identity import RunPath
from shoal._events.paths import path_text

PART = ":~!$'()*,;=@"
"""Characters of a part of a path that need no encoding, besides letters, digits, and ``-._``."""

SAFE = f"/{PART}"

DOTS = {".": "%252E", "..": "%252E%252E"}
"""Parts that a browser would take for steps up in a hierarchy."""


@final
class Urls:
    """The addresses of one mounted application."""

    __slots__ = ("_base", "_versions")

    def __init__(self, base: str, versions: Mapping[str, str]) -> None:
        """Make addresses below ``base``.

        Args:
            base: Where the application is mounted: ``root_path`` of a request.
            versions: A hash of each static file. It is in the file's address, so browsers may keep
                the file for ever.
        """
        self._base = base.rstrip("/")
        self._versions = versions

    def static(self, name: str) -> str:
        """Return the address of a static file."""
        return f"{self._base}/static/{name}?v={self._versions[name]}"

    def runs(self, **query: object) -> str:
        """Return the address of the list of runs."""
        return f"{self._base}/{_query(query)}"

    def run(self, path: RunPath | str, **query: object) -> str:
        """Return the address of a run's page."""
        return f"{self._base}/runs/{_quoted(path)}{_query(query)}"

    def value(self, path: RunPath | str, what: str) -> str:
        """Return the address of a value of a run, as JSON."""
        return f"{self._base}/values/{what}/{_quoted(path)}"

    def limits(self, **query: object) -> str:
        """Return the address of the page of limits."""
        return f"{self._base}/limits{_query(query)}"

    def act(self, verb: str, path: RunPath | str = "") -> str:
        """Return the address that an action's form is sent to."""
        return f"{self._base}/do/{verb}/{_quoted(path)}"

    def token(self) -> str:
        """Return the address that the token is sent to."""
        return f"{self._base}/token"


def own_address(scope: Scope, query: Iterable[tuple[str, str]]) -> str:
    """Return the address of a request, with another query.

    The path in a scope is decoded. Encoding it again gives what the client had asked for, which
    ``request.url`` does not: it leaves per cent signs as they are.
    """
    asked = urlencode([*query])
    return quote(scope["path"], safe=SAFE) + (f"?{asked}" if asked else "")


def _quoted(path: RunPath | str) -> str:
    text = path if isinstance(path, str) else path_text(path)
    return "/".join(DOTS.get(part) or quote(part, safe=PART) for part in text.split("/"))


def _query(query: Mapping[str, object]) -> str:
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return f"?{urlencode(given)}" if given else ""
