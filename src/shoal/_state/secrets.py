"""Secrets: values that each execution of a run is given anew, and that leave it nowhere.

Invariants:
- A run holds a secret in a box. A box can't be shown or pickled, and stores and events accept no
  box. So code that forgets to open a box fails, and leaks nothing.
- The names of secret fields are secret in the whole tree of a root run: no action writes one.
- Data for stores and hooks is searched for the text of secrets. A value that contains some is
  refused where it was made. In the message of an error it is masked instead, because the failure
  has to be reported.
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
"""Stands in a message in place of a secret."""
MASKED_FROM = 4
"""Shorter texts are not masked: "on" or "1" is part of half of all messages."""
REFUSED_FROM = 8
"""Values that contain a secret at least this long are refused; a shorter one they may contain by
chance, but not equal."""


class StandsIn:
    """Marks the class that replaces an error's own when a secret in it can't be masked."""

    __slots__ = ()


@final
class Secret:
    """A box for the value of a secret field."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
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
    """Return a value without its box, if it has one."""
    return value.value if type(value) is Secret else value


def boxed(data: Mapping[str, object], names: Collection[str]) -> Mapping[str, object]:
    """Return ``data`` with the fields in ``names`` in boxes: ``data`` itself if no box is new."""
    open_ones = [name for name in names if name in data and type(data[name]) is not Secret]
    return {**data, **{name: Secret(data[name]) for name in open_ones}} if open_ones else data


def secrets_in(data: Mapping[str, object]) -> dict[str, Secret]:
    """Return the fields of ``data`` that are secret."""
    return {name: value for name, value in data.items() if type(value) is Secret}


def without_secrets(data: Mapping[str, object]) -> Mapping[str, object]:
    """Return ``data`` without its secret fields: ``data`` itself if it has none."""
    if any(type(value) is Secret for value in data.values()):
        return {name: value for name, value in data.items() if type(value) is not Secret}
    return data


_NO_NAMES: frozenset[str] = frozenset()  # one for all runs: few have secrets


@final
class Secrets:
    """The secrets in the tree of a root run: names of fields, and the texts in them."""

    __slots__ = ("_texts", "names")

    def __init__(self) -> None:
        self.names: frozenset[str] = _NO_NAMES
        """The secret fields. Callers skip all other checks while there are none."""
        # Each text with its field. Longer texts first: a shorter one may be a part of a longer one,
        # which could not be found any more once that part is masked.
        self._texts: dict[str, str] = {}

    @classmethod
    def of(cls, data: Mapping[str, object]) -> Secrets:
        """Return the secrets in the fields of one state."""
        secrets = cls()
        secrets.learn(data)
        return secrets

    def hold(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """Return a child's fields with the secret ones in boxes, and learn their texts."""
        data = boxed(given, self.names)
        self.learn(data)
        return data

    def learn(self, data: Mapping[str, object]) -> None:
        """Add the secret fields of a state."""
        found = secrets_in(data)
        if not found:
            return
        self.names |= found.keys()
        texts = dict(self._texts)
        for name, secret in found.items():
            for text in _texts_in(secret.value, opens=False):  # the URL of a client is no secret
                if isinstance(text, str) and len(text) >= MASKED_FROM:
                    texts.update(dict.fromkeys(_written(text), name))
        self._texts = dict(sorted(texts.items(), key=lambda one: -len(one[0])))

    # -- refusing -------------------------------------------------------------------------------

    def refuse(self, value: object, what: str, found_in: Iterable[str] = ()) -> None:
        """Raise if a value that would be saved or given to hooks contains the text of a secret.

        Args:
            value: The value.
            what: Its name in the message: "field 'url', which ... writes,".
            found_in: Its place in the input of the run, if it comes from there.

        Raises:
            SecretLeaked: The message names the secret field, and ``what`` contains its text.
        """
        for text in _texts_in(value):
            name = self._found_in(text)
            if name is not None:
                msg = (
                    f"{what} contains the text of secret field {name!r}, and would be saved and "
                    f"sent to hooks: remove it, or read the field where it is needed"
                )
                raise SecretLeaked(msg, found_in)

    def _found_in(self, text: str | Secret) -> str | None:
        """Return the name of the secret field whose text this is or contains; None if it's none."""
        if isinstance(text, Secret):  # a fast path of the engine has let a box through
            return next(iter(self.names), "")
        if text in self._texts:
            return self._texts[text]
        for secret, name in self._texts.items():
            if len(secret) >= REFUSED_FROM and secret in text:
                return name
        return None

    # -- masking --------------------------------------------------------------------------------

    def mask(self, text: str) -> str:
        """Return ``text`` with each secret in it replaced by ``MASK``."""
        for secret in self._texts:
            if secret in text:
                text = text.replace(secret, MASK)
        return text

    def hide(self, error: BaseException) -> None:
        """Mask the texts of an error, and of its causes and contexts, before it is published.

        The error stays the same object with the same type for all code that catches it.
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
            attributes[name] = self._masked(value)  # also if its class is frozen
        if self._is_exposed_by(error):
            _stand_in(error, self.mask)

    def _is_exposed_by(self, error: BaseException) -> bool:
        """Return whether a secret is still in the texts of an error, or in its data."""
        if any(secret in text for text in _said_by(error) for secret in self._texts):
            return True
        held = (*_copied_of(error), *_texts_in(args_of(error)), *_texts_in(attributes_of(error)))
        return any(self._found_in(text) is not None for text in held)

    def _masked(self, value: Any) -> Any:
        """Mask the texts in plain collections; return the same object if nothing was masked."""
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


def refuse_key(key: object, data: Mapping[str, object], subject: str) -> None:
    """Raise if a key that ``subject`` made from the state ``data`` contains a secret.

    Keys are published, and shared by children.

    Raises:
        SecretLeaked: The key contains the text of a secret field.
    """
    if any(type(value) is Secret for value in data.values()):
        Secrets.of(data).refuse(key, f"the key that {subject} returned")


def _written(text: str) -> Iterator[str]:
    """Yield the forms in which a text is written: as it is, quoted, in a URL."""
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
    """Yield the texts and the boxes in data, also those in models, dataclasses and exceptions.

    Args:
        value: The data.
        opens: Whether the attributes of other objects are searched too, because the codec of a
            store may write them. The search goes one level deep: a row of a database leads to its
            connection, and that to everything.
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
    """Return the parts of a value that is data; None if it is another object."""
    if isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        return (*mapping.keys(), *mapping.values())
    if isinstance(value, Sequence | AbstractSet):
        return tuple(cast("Collection[object]", value))
    if isinstance(value, PurePath):
        return (str(value), value.as_posix())
    if isinstance(value, BaseException):
        held = (part for _, part in _members(value))  # such as the file of an OSError
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
    """Return the values in an object's ``__dict__`` and slots."""
    held = list[object]()
    with suppress(Exception):  # it has no __dict__, or a proxy raises because it is unbound
        held += vars(value).values()
    for kind in type(value).__mro__:
        for member in vars(kind).values():
            if isinstance(member, MemberDescriptorType):
                with suppress(AttributeError):  # the slot is empty
                    held.append(member.__get__(value))
    return held


def _members(error: BaseException) -> Iterator[tuple[Any, object]]:
    """Yield what an exception holds outside of its ``__dict__``, as most of Python's own do."""
    for kind in type(error).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, GetSetDescriptorType | MemberDescriptorType) and name[0] != "_":
                with suppress(AttributeError):  # the slot is empty
                    yield member, member.__get__(error)


def _set(member: Any, error: BaseException, value: object, before: object) -> None:
    if value is not before:
        with suppress(AttributeError, TypeError):  # read-only: _hide replaces the class then
            member.__set__(error, value)


def _said_by(error: BaseException) -> Iterator[str]:
    """Yield the texts that an error is shown as."""
    for say in (str, repr):
        with suppress(Exception):  # a repr that raises shows no secret
            yield say(error)


_class: Any = vars(object)["__class__"]  # the descriptor: a class may override the attribute


def _copied_of(error: BaseException) -> Iterator[str]:
    """Yield the text that a copy of an error in another process is made of."""
    import pickle  # noqa: PLC0415 # as in _written

    with suppress(Exception):  # it can't be pickled, so it is never copied
        yield pickle.dumps(error).decode("utf-8", "replace")


def _stand_in(error: Any, mask: Callable[[str], str]) -> None:
    """Replace an error's class, so that it is shown masked, and copied and saved as its text alone.

    Data beside its text, such as a request with its URL and headers, can't be masked, and the code
    that catches the error may need it. So the new class has the same name and differs only in how
    it is shown, copied and saved.
    """
    kind = cast("type[BaseException]", type(error))
    bases: tuple[type, ...] = (kind, StandsIn)
    try:
        text = mask(str(error))
    except Exception:  # noqa: BLE001 # its own __str__ raises, so there is no text to show
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
    except TypeError:  # a class of Python's own can't be replaced; its text comes from its args
        set_args(error, (text,))
        for member, value in _members(error):
            shown = str(value)
            _set(member, error, mask(shown) if mask(shown) != shown else value, value)


def _returning(value: object) -> Callable[[object], object]:
    return lambda _: value
