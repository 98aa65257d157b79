"""``Codec``: what a state may hold, as JSON text and back. Imports tags, objects and errors.

msgspec is imported here alone, for whoever makes a ``Codec``: stores do. What is plain JSON goes
through it as it is, and only what isn't is packed first.

Invariants:
- ``decode(encode(value))`` is equal to ``value`` and of the same types, at any depth; what can't be
  so is refused when it is encoded, but for exceptions, which are kept as far as that goes.
- What is stored can be queried: plain JSON is stored as plain JSON.
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
"""What may be an int that msgspec writes, and doesn't read: it counts the sign as a digit."""

_SHOWN = 200
"""Characters of a path that a message shows."""

_PLAIN_DEPTH = 20  # deeper, and round in circles, goes what packs


@final
class Codec:
    """Turns what a state may hold into JSON text, and back into what it was.

    None, bool, int, float, str, list and dict are plain JSON, which a database can query. Tuples,
    sets, bytes, dates and times, Decimal, Fraction, UUID, paths, complex, range, deque, Counter,
    OrderedDict and defaultdict are tagged; so are dicts whose keys aren't strings, dataclasses,
    named tuples, enums, pydantic models, exceptions, states and their collections. All come back
    equal and of the same types, at any depth; a value that is used twice comes back as two.
    docs/stored-values.md shows how each is written.

    Dataclasses, named tuples, models, enums and exceptions are found by module and name among the
    modules that are imported: decoding imports nothing. They come back with the fields that were
    saved, and no ``__init__``, ``__post_init__`` or validator runs. A field that was added since
    gets its default; one that was removed is dropped. An exception keeps its type, arguments, notes
    and cause, and those attributes that are data; it never fails to load, for ``SavedError`` stands
    in for one that can't be made again.

    Register what is none of these, and what may change in other ways. Do so before a store uses the
    codec; afterwards it may be used by any number of threads.

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
        """Know the types above, and no others."""
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
        """Say how objects of a class are saved: of this class, not of those derived from it.

        It goes before what the codec would do by itself, so a dataclass whose fields change in ways
        that defaults can't make up for is registered too.

        Args:
            kind: The class.
            tag: Names it in what is saved. It stays, also when the class is renamed.
            version: Of what ``encode`` returns now; counts up from 1.
            encode: Makes of an object what can be saved: of plain data, or of anything else that
                the codec knows.
            decode: Makes the object again. It is given what ``encode`` had returned, and the
                version that it had then: 1 up to ``version``, or 0 for what was saved of a
                dataclass, model, named tuple or enum before it was registered. That it is given
                as a dict of its fields.

        Raises:
            DefinitionError: The tag can't be one, or is in use; or the class is registered already.
        """
        if not isinstance(kind, type):
            raise DefinitionError(f"codec.register() takes a class, not {kind!r}")
        if not _TAG.fullmatch(tag):
            msg = f"{tag!r} can't be a tag: a letter, then letters, digits and any of _ . : -"
            raise DefinitionError(msg)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise DefinitionError(f"the version of tag {tag!r} counts from 1: {version!r} is none")
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
        """Say what a class is now that was saved under another name.

        Args:
            was: Its module and name as they were saved: ``"app.models:Page"``.
            kind: The class.

        Raises:
            DefinitionError: ``was`` is no such name.
        """
        if ":" not in was:
            msg = f"codec.moved() takes a module and a name, like 'app.models:Page', not {was!r}"
            raise DefinitionError(msg)
        self._moved[was] = kind

    def encode(self, value: object, path: str = "value") -> str:
        """Return ``value`` as JSON text.

        Args:
            value: What to save.
            path: What messages call it.

        Raises:
            NotEncodable: It is, or holds, something that can't be saved; or it holds itself, or is
                nested more than 100 deep.
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
        """Return the value that ``text`` was made of.

        Raises:
            NotDecodable: The text is no JSON, or damaged; or something in it is of a type that
                isn't there any more, or of a newer version than this program knows.
        """
        try:
            packed = self._read(text)
            if "@" in text and '"@' in text:
                return Unpacking(self._unpackers).unpack(packed)
        except RecursionError:
            raise NotDecodable("what was saved is nested too deeply to be read") from None
        except self._malformed as error:
            raise NotDecodable(f"what was saved is damaged: {error}") from error
        else:
            return packed

    def _plain(self, value: object) -> str | None:
        """Return the text of what needs no packing: it takes little more than msgspec takes."""
        if type(value) not in ATOMS and not _is_plain(value, _PLAIN_DEPTH):
            return None
        try:
            text = self._write(value).decode()
        except ValueError:  # half a surrogate pair, or a vast int
            return None
        # To look for one character takes a fraction of what looking for more takes.
        if ("@" in text or "\\" in text) and _may_need_packing(text):
            return None
        if len(text) > MAX_DIGITS and (
            get_int_max_str_digits() != MAX_DIGITS or _UNREADABLE.search(text) is not None
        ):
            return None  # an int could be written that isn't read
        return text

    def _packer_of(self, kind: type) -> Packer:
        packer = self._packers.get(kind)
        if packer is None:
            packer = packer_for(kind)
            if packer is not pack_error:  # a local class would be kept alive
                self._packers[kind] = packer
        return packer


def _is_plain(value: Any, depth: int) -> bool:
    """Tell whether JSON has all of ``value``, strings and ints not looked into."""
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
    """Tell whether ``text`` has what looks like a tag, or a NUL, which Postgres refuses."""
    return '"@' in text or "\\u0000" in text
