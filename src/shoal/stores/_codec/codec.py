"""``Codec``: convert the values of a state to JSON text and back.

Plain JSON values go through msgspec as they are; all others are packed first (see ``tags``).
msgspec is an optional dependency, imported only when a ``Codec`` is created.

Invariants:
- ``decode(encode(value))`` equals ``value`` and has the same types, at any depth. A value for which
  that is impossible is refused when it is encoded. Only exceptions are saved as far as possible.
- Stored values can be queried, because plain JSON is stored as plain JSON.
- Decoding imports no module, and calls no function or class that a text names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from math import isfinite
from sys import get_int_max_str_digits
from typing import Any, TypeVar, final

from shoal._errors.exceptions import DefinitionError, NotDecodable, NotEncodable

from .objects import Objects, Registered, pack_error, packer_for
from .tags import ATOMS, MAX_DIGITS, PACKERS, UNPACKERS, Packer, Packing, Refused, Unpacking

T = TypeVar("T")

_TAG = re.compile(r"[A-Za-z][\w.:-]*")

_UNREADABLE = re.compile(rf"-[0-9]{{{MAX_DIGITS}}}")
"""Matches a negative int that msgspec writes but can't read, because it counts the sign as one of
the digits."""

_SHOWN = 200
"""The most characters of a path that a message shows: some lines of a terminal."""

_PLAIN_DEPTH = 20
"""Levels of nesting that are checked for plain JSON. Deeper values, and values that contain
themselves, are packed instead: ``Packing`` detects both."""


@final
class Codec:
    """Converts the values of a state to JSON text, and back.

    None, bool, int, float, str, list and dict are plain JSON, which a database can query. Tuples,
    sets, bytes, dates and times, Decimal, Fraction, UUID, paths, complex, range, deque, Counter,
    OrderedDict and defaultdict are tagged; so are dicts whose keys aren't strings, dataclasses,
    named tuples, enums, pydantic models, exceptions, states and their collections. All are decoded
    as equal values of the same types, at any depth. A value that occurs twice is decoded as two
    values. docs/stored-values.md shows how each is written.

    Dataclasses, named tuples, models, enums and exceptions are found by module and name among the
    modules that are imported: decoding imports nothing. Objects are restored with their saved
    fields; no ``__init__``, ``__post_init__`` or validator runs. A field that was added since gets
    its default; one that was removed is dropped. An exception keeps its type, arguments, notes and
    cause, and those attributes that can be saved. Decoding an exception never fails: if it can't be
    restored, a ``SavedError`` stands in for it.

    Register classes of other kinds, and classes that may change in other ways. Do so before a store
    uses the codec; afterwards any number of threads may use it.

    Examples:
        >>> codec = Codec()
        >>> codec.encode({"title": "Home", "size": (3, 4)})
        '{"title":"Home","size":{"@":"tuple","value":[3,4]}}'
        >>> codec.decode(codec.encode({"title": "Home", "size": (3, 4)}))
        {'title': 'Home', 'size': (3, 4)}

    Raises:
        ImportError: msgspec isn't installed.
    """

    _registered: dict[type, Registered]
    _moved: dict[str, type]

    def __init__(self) -> None:
        """Create a codec for the types above, without registered ones."""
        try:
            from msgspec import MsgspecError  # noqa: PLC0415 # an extra of the stores
            from msgspec.json import Decoder, Encoder  # noqa: PLC0415 # as above
        except ImportError as error:
            msg = "saving values needs msgspec, which isn't installed: pip install 'shoal[sqlite]'"
            raise ImportError(msg) from error
        self._write: Callable[[object], bytes] = Encoder().encode
        self._read: Callable[[str], Any] = Decoder().decode
        self._malformed = (MsgspecError, ValueError)
        self._registered = {}
        self._moved = {}
        self._packers: dict[type, Packer] = dict(PACKERS)
        objects = Objects(self._registered, self._moved)
        self._unpackers = {**UNPACKERS, **objects.unpackers()}

    def register(
        self,
        kind: type[T],
        *,
        tag: str,
        version: int = 1,
        encode: Callable[[T], object],
        decode: Callable[[Any, int], T],
    ) -> None:
        """Define how objects of a class are saved. Derived classes are not included.

        The registration replaces the codec's own way. So register a dataclass, too, if its fields
        change in ways for which defaults are not enough.

        Args:
            kind: The class.
            tag: The name of the class in saved values. It must stay the same even if the class is
                renamed.
            version: The version of the values that ``encode`` returns now, counted from 1.
            encode: Converts an object to a value that can be saved, made of any types that the
                codec knows.
            decode: Restores the object. Its arguments are the value that ``encode`` returned, and
                the version at that time: 1 to ``version``, or 0 for a dataclass, model, named tuple
                or enum that was saved before it was registered. The value is then a dict of its
                fields.

        Raises:
            DefinitionError: The tag is invalid or in use, or the class is registered already.
        """
        if not isinstance(kind, type):
            raise DefinitionError(f"codec.register() takes a class, not {kind!r}")
        if not _TAG.fullmatch(tag):
            msg = f"{tag!r} can't be a tag: a letter, then letters, digits and any of _ . : -"
            raise DefinitionError(msg)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            msg = f"the version of tag {tag!r} is a number that counts from 1, not {version!r}"
            raise DefinitionError(msg)
        if kind in self._registered or kind in PACKERS:
            tagged = f": as {self._registered[kind].tag!r}" if kind in self._registered else ""
            raise DefinitionError(f"the codec knows {kind.__name__} already{tagged}")
        for each in self._registered.values():
            if each.tag == tag:
                raise DefinitionError(f"the tag {tag!r} is in use for {each.kind.__name__}")
        registered = Registered(kind, tag, version, encode, decode)
        self._registered[kind] = registered
        self._packers[kind] = registered.pack
        for each in range(1, version + 1):
            self._unpackers[f"{tag}/{each}"] = partial(registered.unpack, each)

    def moved(self, was: str, kind: type) -> None:
        """Name the present class of objects that were saved under another name.

        Args:
            was: The saved module and name: ``"app.models:Page"``.
            kind: The present class.

        Raises:
            DefinitionError: ``was`` has another form.
        """
        if ":" not in was:
            msg = f"codec.moved() takes a module and a name, like 'app.models:Page', not {was!r}"
            raise DefinitionError(msg)
        self._moved[was] = kind

    def encode(self, value: object, path: str = "value") -> str:
        """Return ``value`` as JSON text.

        Args:
            value: The value to save.
            path: The name of the value in messages.

        Raises:
            NotEncodable: The value is, or holds, an object that can't be saved; or it contains
                itself, or is nested more than 100 levels deep.
        """
        try:
            text = self._plain(value)
            if text is None:
                text = self._write(Packing(self._packer_of).pack(value)).decode()
        except Refused as refused:
            path += "".join(reversed(refused.steps))
            shown = path if len(path) < _SHOWN else f"{path[: _SHOWN // 2]}…{path[-_SHOWN // 4 :]}"
            raise NotEncodable(f"{shown} {refused.reason}", path) from refused.__cause__
        except RecursionError:
            msg = f"{path} is nested too deeply for the stack it is saved from"
            raise NotEncodable(msg, path) from None
        else:
            return text

    def decode(self, text: str) -> Any:
        """Return the value that was encoded as ``text``.

        Raises:
            NotDecodable: The text is not JSON or damaged; or it has a type that doesn't exist any
                more, or a newer version than this program knows.
        """
        try:
            packed = self._read(text)
            if "@" in text and '"@' in text:
                return Unpacking(self._unpackers).unpack(packed)
        except RecursionError:
            raise NotDecodable("a saved value is nested too deeply to be read") from None
        except self._malformed as error:
            raise NotDecodable(f"a saved value is damaged: {error}") from error
        else:
            return packed

    def _plain(self, value: object) -> str | None:
        """Return the text of a value that needs no packing; None if it may need it.

        This is the fast path: it takes little more time than msgspec alone.
        """
        if type(value) not in ATOMS and not _is_plain(value, _PLAIN_DEPTH):
            return None
        try:
            text = self._write(value).decode()
        except ValueError:  # half a surrogate pair, or a vast int
            return None
        # Two searches for one character are much faster than one for a longer text, and mostly
        # suffice.
        if ("@" in text or "\\" in text) and _may_need_packing(text):
            return None
        if len(text) > MAX_DIGITS and (
            get_int_max_str_digits() != MAX_DIGITS or _UNREADABLE.search(text) is not None
        ):
            return None  # msgspec may have written an int that it can't read again
        return text

    def _packer_of(self, kind: type) -> Packer:
        packer = self._packers.get(kind)
        if packer is None:
            packer = packer_for(kind)
            if packer is not pack_error:  # the cache would keep a local exception class alive
                self._packers[kind] = packer
        return packer


def _is_plain(value: Any, depth: int) -> bool:
    """Return whether ``value`` is plain JSON; the content of strings and ints is not checked."""
    kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                return False
            if type(item) not in ATOMS and not (depth and _is_plain(item, depth - 1)):
                return False
        return True
    if kind is list:
        if ATOMS.issuperset(map(type, value)):
            return True
        return depth > 0 and all(
            type(item) in ATOMS or _is_plain(item, depth - 1) for item in value
        )
    return kind in ATOMS or (kind is float and isfinite(value))


def _may_need_packing(text: str) -> bool:
    """Return whether ``text`` may contain a tag, or a NUL, which Postgres refuses."""
    return '"@' in text or "\\u0000" in text
