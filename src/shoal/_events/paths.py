"""Write the path of a run as text, for addresses of pages and for command lines.

A root run is its id. A child has its parent's text before it: ``crawl-1/pages:0:fetch:a.html``.
Parts are percent-encoded where they contain characters that separate parts. A key that is a number
has a ``#`` before its digits.
"""

from __future__ import annotations

from urllib.parse import quote, unquote

from shoal._errors.exceptions import UnknownRun, brief

from .identity import Key, RunPath

_PLAIN = "-._~@+=,!$()*"
"""Characters that are written as they are, besides letters and digits: they separate nothing in a
path, and neither in an address nor in a shell's double quotes do they need care."""


_SHORT = 200
_DIGITS = 18
"""Digits of a number of a visit, at most: as many as any number of 64 bits may have."""


def path_text(path: RunPath) -> str:
    """Write the path of a run as text: ``RUN_ID/step:visit:act:key/...``.

    Examples:
        >>> from shoal import RunPath
        >>> root = RunPath(run_id="crawl-1")
        >>> path_text(RunPath(parent=root, step="pages", act="fetch", key=12))
        'crawl-1/pages:0:fetch:#12'
    """
    parts = list[str]()
    at: RunPath = path
    while at.parent is not None:
        names = (_quoted(at.step), str(at.visit), _quoted(at.act), _key_text(at.key))
        parts.append(":".join(names))
        at = at.parent
    return "/".join((_quoted(at.id), *reversed(parts)))


def key_as_text(key: Key) -> str:
    """Return a key for people to read; a number of very many digits as a hexadecimal one."""
    try:
        return str(key)
    except ValueError:  # more decimal digits than Python converts
        return f"{key:#x}"


def key_in_short(key: object) -> str:
    """Return the key of a limit as reports tell it: they are rewritten a few times per second."""
    text = key if isinstance(key, str) else brief(key)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def parse_path(text: str) -> RunPath:
    """Return the path that ``path_text`` wrote as ``text``.

    Raises:
        UnknownRun: The text is not the path of a run.
    """
    run_id, *parts = text.split("/")
    if not run_id:
        raise UnknownRun(f"{text!r} is not the path of a run: it begins with the id of a root run")
    path = RunPath(run_id=_unquoted(run_id))
    for part in parts:
        names = part.split(":")
        # A visit of more digits is none, and neither Python nor a database could convert all.
        is_number = names[1:] and names[1].isdecimal() and len(names[1]) <= _DIGITS
        if len(names) != 4 or not is_number:  # noqa: PLR2004 # the four parts below
            msg = (
                f"{text!r} is not the path of a run: {part!r} is not step:visit:act:key, with a "
                f"number as visit (':', '/', '%' and '#' in a name are written as %3A, %2F, %25 "
                f"and %23)"
            )
            raise UnknownRun(msg)
        step, visit, act, key = names
        path = RunPath(
            parent=path,
            step=_unquoted(step),
            visit=int(visit),
            act=_unquoted(act),
            key=_key_of(key, text),
        )
    return path


def _key_text(key: Key) -> str:
    if isinstance(key, str):
        return _quoted(key)
    return f"#{key_as_text(key)}"


def _key_of(text: str, path: str) -> Key:
    if not text.startswith("#"):
        return _unquoted(text)
    try:
        return int(text[1:], 16 if "x" in text else 10)
    except ValueError:
        raise UnknownRun(f"{path!r} is not the path of a run: {text!r} is not a number") from None


def _quoted(text: str) -> str:
    return quote(text, _PLAIN, errors="surrogatepass")


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="surrogatepass")
    except UnicodeDecodeError:
        msg = f"{text!r} is not the path of a run, nor a part of one: it is no UTF-8"
        raise UnknownRun(msg) from None
