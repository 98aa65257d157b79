"""Secrets: what a run is given by each execution anew, and what leaves it nowhere. Imports errors.

Invariants:
- A run holds a secret in a box. A box shows, copies and pickles nothing of what is in it, and
  nothing that is kept or told takes one. So a place that forgets to open it fails, and leaks not.
- The names of secret fields are secret in the whole tree of a root run: no action writes one.
- What is kept or told is looked through for the text of secrets. A value that has some is refused,
  where it was made; an error's message is masked, for what went wrong has to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from types import GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any, NoReturn, cast, final

from shoal._errors.exceptions import SavedError, SecretLeaked
from shoal._errors.inspection import (
    args_of,
    attributes_of,
    cause_of,
    context_of,
    members,
    message_of,
    set_args,
)

MASK = "***"
"""What stands in a message in the place of a secret."""
MASKED_FROM = 4
"""Characters of the shortest text that is masked: a shorter one is everywhere."""
REFUSED_FROM = 8
"""...and of the shortest that no value may contain. What is shorter, it may not equal."""


class StandsIn:
    """What an error is besides that holds what is secret, and can't be masked."""

    __slots__ = ()


@final
class Secret:
    """A box for the value of a secret field."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        """Put ``value`` in."""
        self.value: object = value

    def __repr__(self) -> str:
        return "<secret>"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        msg = "a secret is not pickled"
        raise TypeError(msg)


def reveal(value: object) -> Any:  # a field holds anything
    """Take a value out of its box, if it is in one."""
    return value.value if type(value) is Secret else value


def boxed(data: Mapping[str, object], names: Collection[str]) -> Mapping[str, object]:
    """Return ``data`` with those of its fields in boxes that ``names`` has: itself, if none is."""
    open_ones = [name for name in names if name in data and type(data[name]) is not Secret]
    return {**data, **{name: Secret(data[name]) for name in open_ones}} if open_ones else data


def secrets_in(data: Mapping[str, object]) -> dict[str, Secret]:
    """Return the fields of ``data`` that are secret."""
    return {name: value for name, value in data.items() if type(value) is Secret}


def without_secrets(data: Mapping[str, object]) -> Mapping[str, object]:
    """Return ``data`` without the fields that are secret: itself, if none is."""
    if any(type(value) is Secret for value in data.values()):
        return {name: value for name, value in data.items() if type(value) is not Secret}
    return data


@final
class Secrets:
    """What is secret in the tree of a root run: names of fields, and the text in them."""

    __slots__ = ("_texts", "names")

    def __init__(self) -> None:
        """Know of none."""
        self.names: frozenset[str] = frozenset()
        """The secret fields: nothing else has to be asked for where there are none."""
        self._texts: dict[str, str] = {}  # each with its field; longer ones first

    @classmethod
    def of(cls, data: Mapping[str, object]) -> Secrets:
        """Know of what is secret in the fields of one state."""
        secrets = cls()
        secrets.learn(data)
        return secrets

    def hold(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """Take the fields that a child is given: with a secret field's name, one is secret too."""
        data = boxed(given, self.names)
        self.learn(data)
        return data

    def learn(self, data: Mapping[str, object]) -> None:
        """Hear of the secret fields among those of a state."""
        found = secrets_in(data)
        if not found:
            return
        self.names |= found.keys()
        texts = dict(self._texts)
        for name, secret in found.items():
            for text in _texts_in(secret.value, opens=False):  # a client's URL is no secret
                if isinstance(text, str) and len(text) >= MASKED_FROM:
                    texts.update(dict.fromkeys(_written(text), name))
        self._texts = dict(sorted(texts.items(), key=lambda one: -len(one[0])))

    # -- refusing -------------------------------------------------------------------------------

    def refuse(self, value: object, what: str, found_in: Iterable[str] = ()) -> None:
        """Refuse what would be kept or told, and holds the text of a secret.

        Args:
            value: What would be.
            what: Its name in the message: "field 'url', which ... writes,".
            found_in: Its place in what the run was started with, if it was there.

        Raises:
            SecretLeaked: Naming the field, and ``what`` holds it.
        """
        for text in _texts_in(value):
            name = self._found_in(text)
            if name is not None:
                msg = (
                    f"{what} holds what secret field {name!r} has, and would be saved and told to "
                    f"hooks: take it out of there, or read the field where it is needed"
                )
                raise SecretLeaked(msg, found_in)

    def _found_in(self, text: str | Secret) -> str | None:
        """Say which secret a value that has this text holds, if it does."""
        if isinstance(text, Secret):  # that an engine's own short cut has let through
            return next(iter(self.names), "")
        if text in self._texts:
            return self._texts[text]
        for secret, name in self._texts.items():
            if len(secret) >= REFUSED_FROM and secret in text:
                return name
        return None

    # -- masking --------------------------------------------------------------------------------

    def mask(self, text: str) -> str:
        """Return ``text`` with what is secret in it masked."""
        for secret in self._texts:
            if secret in text:
                text = text.replace(secret, MASK)
        return text

    def hide(self, error: BaseException) -> None:
        """Mask what an error says, and those that led to it: it is about to be told.

        The error stays what it is, also for whoever catches it: only its text changes.
        """
        if not self._texts:
            return
        seen: dict[int, BaseException] = {}
        left: list[BaseException | None] = [error]
        while left:
            one = left.pop()
            if one is None or id(one) in seen:
                continue
            seen[id(one)] = one
            left += (cause_of(one), context_of(one))
            if isinstance(one, BaseExceptionGroup):
                left += members(cast("BaseExceptionGroup[BaseException]", one))
            self._hide(cast("BaseException", one))

    def _hide(self, error: BaseException) -> None:
        set_args(error, self._masked(args_of(error)))
        for member, value in _members(error):
            _set(member, error, self._masked(value), value)
        attributes = attributes_of(error)
        for name, value in list(attributes.items()):
            attributes[name] = self._masked(value)  # past a class that is frozen
        if self._is_told_by(error):
            _stand_in(error, self.mask)

    def _is_told_by(self, error: BaseException) -> bool:
        """Tell whether what is secret is still in what an error says, or has beside that."""
        if any(secret in text for text in _said_by(error) for secret in self._texts):
            return True
        held = (*_copied_of(error), *_texts_in(args_of(error)), *_texts_in(attributes_of(error)))
        return any(self._found_in(text) is not None for text in held)

    def _masked(self, value: Any) -> Any:
        """Mask the text in a value made of plain collections: the same object, if there is none."""
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, bytes):
            text = value.decode("utf-8", "surrogateescape")
            masked = self.mask(text)
            return value if masked == text else masked.encode("utf-8", "surrogateescape")
        if type(value) in (list, tuple, set, frozenset):
            items = list(cast("list[object]", value))
            changed = [self._masked(item) for item in items]
            same = all(one is other for one, other in zip(items, changed, strict=True))
            return value if same else type(value)(changed)
        if type(value) is dict:
            pairs = list(cast("dict[object, object]", value).items())
            changed = [self._masked(pair) for pair in pairs]
            same = all(one is other for one, other in zip(pairs, changed, strict=True))
            return cast("object", value) if same else dict(changed)
        return value


def refuse_key(key: object, data: Mapping[str, object], who: str) -> None:
    """Refuse a key that ``who`` has made of the state ``data``: keys are told, and shared.

    Raises:
        SecretLeaked: It holds what a secret field has.
    """
    if any(type(value) is Secret for value in data.values()):
        Secrets.of(data).refuse(key, f"the key that {who} returned")


def _written(text: str) -> Iterator[str]:
    """Go through the ways in which a text is written: as it is, quoted, in a URL."""
    # Most programs have no secrets, and these would take a twentieth of the time to import shoal.
    import json  # noqa: PLC0415
    from urllib.parse import quote, quote_plus  # noqa: PLC0415

    yield text
    yield repr(text)[1:-1]
    yield json.dumps(text)[1:-1]
    yield quote(text)
    yield quote(text, safe="")
    yield quote_plus(text)


def _texts_in(value: object, *, opens: bool = True) -> Iterator[str | Secret]:
    """Go through the text in data, and the boxes: also in models, dataclasses and exceptions.

    Args:
        value: The data.
        opens: Whether other objects are looked into, too: a store's codec may write them, nobody
            here knows how. But not what those hold besides data: a row leads to its connection, and
            that to everything.
    """
    seen: dict[tuple[int, bool], object] = {}
    left: list[tuple[object, bool]] = [(value, opens)]
    while left:
        one, may_open = left.pop()
        if isinstance(one, str | Secret):
            yield one
        elif isinstance(one, bytes | bytearray):
            yield bytes(one).decode("utf-8", "replace")
        elif one is None or isinstance(one, int | float) or (id(one), may_open) in seen:
            continue
        else:
            seen[id(one), may_open] = one
            parts = _parts_of(one)
            if parts is None:
                parts = _attributes_of(one) if may_open else ()
                may_open = False
            left += [(part, may_open) for part in parts]


def _parts_of(value: object) -> Iterable[object] | None:
    """Return what a value consists of, if it is data; None if it is another object."""
    if isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        return (*mapping.keys(), *mapping.values())
    if isinstance(value, Sequence | AbstractSet):
        return tuple(cast("Collection[object]", value))
    if isinstance(value, PurePath):
        return (str(value), value.as_posix())
    if isinstance(value, BaseException):
        held = (part for _, part in _members(value))  # as an OSError has its file
        return (*value.args, *vars(value).values(), value.__cause__, *held)
    if isinstance(value, type | ModuleType):
        return ()
    opened: Callable[[], object] | None = getattr(value, "get_secret_value", None)
    if opened is not None:
        return (opened(),)
    if is_dataclass(value):
        return [getattr(value, field.name, None) for field in fields(value)]
    if hasattr(value, "__pydantic_fields__"):
        besides = getattr(value, "__pydantic_extra__", None)
        private: dict[str, object] | None = getattr(value, "__pydantic_private__", None)
        return (*vars(value).values(), besides, *(private or {}).values())
    return None


def _attributes_of(value: object) -> list[object]:
    """Return what an object holds, by its ``__dict__`` and its slots."""
    held = list[object]()
    with suppress(Exception):  # it has none, or a proxy's is not to be had now
        held += vars(value).values()
    for kind in type(value).__mro__:
        for member in vars(kind).values():
            if isinstance(member, MemberDescriptorType):
                with suppress(AttributeError):  # nothing was put there
                    held.append(member.__get__(value))
    return held


def _members(error: BaseException) -> Iterator[tuple[Any, object]]:
    """Go through what an exception holds beside ``__dict__``: Python's own do, mostly."""
    for kind in type(error).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, GetSetDescriptorType | MemberDescriptorType) and name[0] != "_":
                with suppress(AttributeError):  # it has none
                    yield member, member.__get__(error)


def _set(member: Any, error: BaseException, value: object, before: object) -> None:
    if value is not before:
        with suppress(AttributeError, TypeError):  # then its class is replaced
            member.__set__(error, value)


def _said_by(error: BaseException) -> Iterator[str]:
    """Go through the texts that an error is shown as."""
    for say in (str, repr):
        with suppress(Exception):  # who wants it so will not see more
            yield say(error)


_class: Any = vars(object)["__class__"]


def _copied_of(error: BaseException) -> Iterator[str]:
    """Go through the text that a copy of an error in another process would be made of."""
    import pickle  # noqa: PLC0415 # as in _written

    with suppress(Exception):  # there can be none
        yield pickle.dumps(error).decode("utf-8", "replace")


def _stand_in(error: Any, mask: Callable[[str], str]) -> None:
    """Have an error be shown masked, and be copied and saved as no more than what it says.

    What it holds besides text, a request with its URL and headers, say, can't be masked, and is
    left to whoever catches it. So its class is replaced by one of the same name that differs in
    nothing but this.
    """
    kind = cast("type[BaseException]", type(error))
    bases: tuple[type, ...] = (kind, StandsIn)
    try:
        text = mask(str(error))
    except Exception:  # noqa: BLE001 # then it can't be shown at all
        text = ""
    methods: dict[str, Any] = {
        "__str__": _returning(text),
        "__repr__": _returning(f"{kind.__name__}({text!r})"),
        "__reduce__": _returning((SavedError, (f"{kind.__module__}:{kind.__qualname__}", text))),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
    }
    if issubclass(kind, BaseExceptionGroup):
        methods["message"] = mask(message_of(error))
    try:
        _class.__set__(error, type(kind.__name__, bases, methods))
    except TypeError:  # one of Python's own, which says what it was made of
        set_args(error, (text,))
        for member, value in _members(error):
            shown = str(value)
            _set(member, error, mask(shown) if mask(shown) != shown else value, value)


def _returning(value: object) -> Callable[[object], object]:
    return lambda _: value
