"""Pack and unpack objects: dataclasses, named tuples, enums, pydantic models, exceptions.

pydantic is never imported here; its models are recognized if the program has imported it.

Invariants:
- Unpacking creates only dataclasses, named tuples, enums, pydantic models and exceptions, and only
  after checking that the class of that name is one now.
- Unpacking runs no ``__init__``, ``__post_init__``, validator or setter of a user: fields are set
  as they were saved, as ``pickle`` and ``copy`` do. New fields get their defaults.
- An object is saved as a whole or refused. Only an exception is saved as far as possible, because a
  run that fails must be able to save its failure.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum, Flag
from functools import cached_property, partial
from inspect import getattr_static
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, NamedTuple, cast, final

from shoal._errors.exceptions import NotDecodable, SavedError, brief
from shoal._errors.inspection import members, message_of
from shoal._state.secrets import StandsIn

from .tags import TAG, Packed, Packer, Packing, Refused, Unpacker, Unpacking
from .typenames import find, name_of, why_not_found

BEFORE = 0
"""The version of values that were saved before their type was registered."""

_TYPE = "@type"
_ALIAS = "__orig_class__"
"""An attribute that ``Box[int](1)`` has beside its fields: a hint for type checkers, not data."""
_BUILTIN: tuple[type[Any], ...] = (
    str,
    int,
    float,
    complex,
    bytes,
    bytearray,
    list,
    tuple,
    dict,
    set,
    frozenset,
)


@final
class Registered(NamedTuple):
    """A type that a user has registered."""

    kind: type
    tag: str
    version: int
    encode: Callable[[Any], object]
    decode: Callable[[Any, int], object]

    def pack(self, packing: Packing, value: object) -> object:
        """Pack the value that ``encode`` returns for ``value``."""
        try:
            encoded = self.encode(value)
        except Exception as error:
            name, raised = self.kind.__name__, type(error).__name__
            msg = f"is {_a(self.kind)}, and the encode= of {name} raised {raised}: {error}"
            raise Refused(msg) from error
        packed = packing.pack(encoded)
        return {TAG: f"{self.tag}/{self.version}", "value": packed}

    def unpack(self, version: int, unpacking: Unpacking, packed: Packed) -> object:
        """Return the object that ``decode`` makes of the saved value."""
        return self.decode(unpacking.unpack(packed["value"]), version)


# -- writing ---------------------------------------------------------------------------------------


def packer_for(kind: type[Any]) -> Packer:
    """Return the packer for objects of the class ``kind``.

    Raises:
        Refused: There is none, or the class could not be found again.
    """
    if issubclass(kind, BaseException):
        return pack_error
    packer = _packer_for(kind)
    name = name_of(kind)
    if find(name) is not kind:
        reason = why_not_found(name)
        raise Refused(
            f"is {_a(kind)}, which can't be found again as {name}: {reason}, or register it"
        )
    return partial(packer, name)


def _packer_for(kind: type[Any]) -> Callable[[str, Packing, Any], object]:
    if issubclass(kind, Enum):
        return _pack_flag if issubclass(kind, Flag) else _pack_enum
    if is_named_tuple(kind):
        return _pack_named_tuple
    for builtin in _BUILTIN:
        if builtin in kind.__mro__:
            raise Refused(
                f"is {_a(kind)}, and would come back as a plain {builtin.__name__}: make it one "
                f"before it is saved, or register it with the codec"
            )
    if dataclasses.is_dataclass(kind):
        return partial(_pack_dataclass, *_fields_of(kind))
    if is_model(kind):
        return partial(_pack_model, list(kind.model_fields))
    raise Refused(
        f"is {_a(kind)}, which can't be saved: register it with "
        f"codec.register({kind.__name__}, tag=..., encode=..., decode=...), or keep it out: "
        f"declare the field secret, or give the object as an input"
    )


def is_named_tuple(kind: type[Any]) -> bool:
    """Return whether ``kind`` is the class of a named tuple."""
    names = getattr_static(kind, "_fields", None)
    return issubclass(kind, tuple) and isinstance(names, tuple)


def is_model(kind: type[Any]) -> bool:
    """Return whether ``kind`` is a pydantic model. If it is, pydantic is imported already."""
    module = sys.modules.get("pydantic.main")
    return module is not None and issubclass(kind, module.BaseModel)


def _a(kind: type[Any]) -> str:
    return f"{'an' if kind.__name__[0] in 'aeiouAEIOU' else 'a'} {kind.__name__}"


def _pack_fields(packing: Packing, head: Packed, fields: Iterable[tuple[str, object]]) -> Packed:
    """Add fields to ``head``, which has a tag and a type, so that a database can query them."""
    name = ""
    try:
        for name, item in fields:
            head[name] = packing.pack(item)
    except Refused as refused:
        refused.steps.append(f".{name}")
        raise
    return head


def _pack_enum(kind: str, _: Packing, value: Enum) -> object:
    if value._name_ not in type(value)._member_map_:
        raise Refused(f"is {brief(value)}, which is no member of {type(value).__name__}")
    return {TAG: "enum", _TYPE: kind, "name": value._name_}


def _pack_flag(kind: str, packing: Packing, value: Flag) -> object:
    return {TAG: "flag", _TYPE: kind, "value": packing.pack(int(value._value_))}


def _pack_named_tuple(kind: str, packing: Packing, value: Any) -> object:
    _refuse_more(value, ())
    fields = zip(value._fields, cast("tuple[object, ...]", value), strict=True)
    return _pack_fields(packing, {TAG: "namedtuple", _TYPE: kind}, fields)


def _fields_of(kind: Any) -> tuple[list[str], list[str]]:
    """Return the names of a dataclass's fields, and of those that every object must have."""
    fields = dataclasses.fields(kind)
    return [field.name for field in fields], [field.name for field in fields if field.init]


def _pack_dataclass(
    names: list[str], needed: list[str], kind: str, packing: Packing, value: Any
) -> object:
    _refuse_more(value, names)
    _refuse_less(value, needed)
    fields = ((name, getattr(value, name)) for name in names if hasattr(value, name))
    return _pack_fields(packing, {TAG: "dataclass", _TYPE: kind}, fields)


def _pack_model(names: list[str], kind: str, packing: Packing, value: Any) -> object:
    _refuse_more(value, names)
    _refuse_less(value, names)
    fields = ((name, getattr(value, name)) for name in names)
    packed = _pack_fields(packing, {TAG: "model", _TYPE: kind}, fields)
    extra: dict[str, object] = value.__pydantic_extra__ or {}
    private: dict[str, object] = value.__pydantic_private__ or {}
    unset = [name for name in [*names, *extra] if name not in value.__pydantic_fields_set__]
    for key, more in ("extra", extra), ("private", private), ("unset", unset):
        if more:
            packed[f"@{key}"] = packing.pack(more)
    return packed


def _refuse_more(value: object, names: Collection[str]) -> None:
    """Refuse an object with attributes beside its fields. Cached properties are no data."""
    for name in getattr(value, "__dict__", ()):
        if name in names or name == _ALIAS:
            continue
        if not isinstance(getattr_static(type(value), name, None), cached_property):
            raise Refused(
                f"has an attribute {name!r}, which is not a field of {type(value).__name__} and "
                f"would be lost: make it one, with field(init=False), or register the type"
            )


def _refuse_less(value: object, names: Iterable[str]) -> None:
    """Refuse an object without some of its fields, because it couldn't be unpacked."""
    for name in names:
        if not hasattr(value, name):
            raise Refused(
                f"has no {name!r}, which {_a(type(value))} has: set it before it is saved"
            )


# -- exceptions: saved as far as possible ----------------------------------------------------------


def pack_error(packing: Packing, error: BaseException) -> object:
    if isinstance(error, SavedError):  # saved as the exception that it stands in for
        packed: Packed = {TAG: "error", _TYPE: error.type, "text": packing.pack(error.text)}
        args, state = None, dict(vars(error))
        del state["type"], state["text"]
    elif isinstance(error, StandsIn):  # it hides secrets: its arguments and state are not saved
        packed = {TAG: "error", _TYPE: name_of(type(error)), "text": packing.pack(str(error))}
        args, state = None, {"__notes__": getattr(error, "__notes__", None)}
    else:
        packed = {TAG: "error", _TYPE: name_of(type(error)), "text": packing.pack(_text_of(error))}
        args, state = _parts_of(error)
    if args is not None:
        packed_args = packing.attempt(args)
        if packed_args is not None:
            packed["args"] = packed_args
    notes = state.pop("__notes__", None)
    if notes:
        packed["notes"] = packing.attempt(notes, [])
    kept = {name: packing.attempt(item, _LEFT_OUT) for name, item in state.items()}
    kept = {name: item for name, item in kept.items() if item is not _LEFT_OUT}
    if kept:
        packed["state"] = kept
    if error.__cause__ is not None:
        packed["cause"] = packing.attempt(error.__cause__)
    return packed


_LEFT_OUT = object()


def _parts_of(error: BaseException) -> tuple[list[object], dict[str, Any]]:
    """Return the arguments of an exception, and its attributes."""
    reduced: Any = _builtin_of(type(error)).__reduce__(error)
    # The third item of pickle's protocol is the state; it may be missing.
    state: dict[str, Any] = dict(reduced[2] or {}) if len(reduced) > 2 else {}  # noqa: PLR2004 # see above
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return [message_of(group), list(members(group))], state
    return list(reduced[1]), state


def _builtin_of(kind: type[BaseException]) -> type[BaseException]:
    """Return the first of Python's own exception classes among the bases of ``kind``."""
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 # a broken __str__ must not hide the error
        return f"<str() of it failed: {brief(failure)}>"


# -- reading ---------------------------------------------------------------------------------------


@final
class Objects:
    """Unpacks objects of users' classes."""

    def __init__(self, registered: Mapping[type, Registered], moved: Mapping[str, type]) -> None:
        """Find types in ``moved`` first, then by name."""
        self._registered = registered
        self._moved = moved

    def unpackers(self) -> dict[str, Unpacker]:
        """Return the unpacker of each tag."""
        return {
            "enum": partial(self._unpack, _is_enum, _make_enum),
            "flag": partial(self._unpack, _is_enum, _make_flag),
            "namedtuple": partial(self._unpack, is_named_tuple, _make_named_tuple),
            "dataclass": partial(self._unpack, dataclasses.is_dataclass, _make_dataclass),
            "model": partial(self._unpack, is_model, _make_model),
            "error": self._unpack_error,
        }

    def _unpack(
        self,
        is_one: Callable[[type], bool],
        make: Callable[[Any, dict[str, Any]], object],
        unpacking: Unpacking,
        packed: Packed,
    ) -> object:
        name = packed[_TYPE]
        kind = self._find(name)
        fields = {
            key: unpacking.unpack(item) for key, item in packed.items() if key not in (TAG, _TYPE)
        }
        registered = self._registered.get(kind) if isinstance(kind, type) else None
        if registered is not None:
            return registered.decode(
                {key: item for key, item in fields.items() if key[0] != TAG}, BEFORE
            )
        if not isinstance(kind, type) or not is_one(kind):
            msg = (
                f"a {packed[TAG]} was saved as {name}, which is not one now: {why_not_found(name)}"
            )
            raise NotDecodable(msg)
        return make(kind, fields)

    def _find(self, name: str) -> object:
        return self._moved.get(name) or find(name)

    def _unpack_error(self, unpacking: Unpacking, packed: Packed) -> object:
        error = self._made_again(unpacking, packed)
        if error is None:
            error = SavedError(packed[_TYPE], unpacking.unpack(packed["text"]))
        for name, item in packed.get("state", {}).items():
            _set_if_possible(error, name, unpacking, item)
        if "notes" in packed:
            error.__notes__ = unpacking.unpack(packed["notes"])
        if packed.get("cause") is not None:
            error.__cause__ = unpacking.unpack(packed["cause"])
        return error

    def _made_again(self, unpacking: Unpacking, packed: Packed) -> BaseException | None:
        kind = self._find(packed[_TYPE])
        if "args" not in packed or not (
            isinstance(kind, type) and issubclass(kind, BaseException) and kind is not SavedError
        ):
            return None
        builtin = _builtin_of(kind)
        try:
            args = unpacking.unpack(packed["args"])
            error: BaseException = builtin.__new__(kind, *args)
            builtin.__init__(error, *args)
        except Exception:  # noqa: BLE001 # the class takes other arguments now: use a SavedError
            return None
        return error


def _set_if_possible(error: BaseException, name: str, unpacking: Unpacking, packed: object) -> None:
    """Set an attribute of ``error`` without calling a setter of its class."""
    slot = getattr_static(_builtin_of(type(error)), name, None)
    try:
        value = unpacking.unpack(packed)
        if isinstance(slot, GetSetDescriptorType | MemberDescriptorType):
            slot.__set__(error, value)
        else:
            vars(error)[name] = value
    except (AttributeError, TypeError, NotDecodable):  # decoding an exception never fails
        return


def _is_enum(kind: type) -> bool:
    return issubclass(kind, Enum)


def _make_enum(kind: type[Enum], fields: dict[str, Any]) -> object:
    member = kind._member_map_.get(fields["name"])
    if member is None:
        msg = (
            f"{kind.__name__}.{fields['name']} was saved, and {kind.__name__} has no such member "
            f"now: add that name as an alias"
        )
        raise NotDecodable(msg)
    return member


def _make_flag(kind: type[Enum], fields: dict[str, Any]) -> object:
    return kind(fields["value"])


def _make_named_tuple(kind: Any, fields: dict[str, Any]) -> object:
    defaults: dict[str, object] = kind._field_defaults
    return cast("Any", tuple).__new__(
        kind, [_field(kind, name, fields, defaults) for name in kind._fields]
    )


def _field(kind: type, name: str, *among: Mapping[str, object]) -> object:
    for fields in among:
        if name in fields:
            return fields[name]
    msg = (
        f"{kind.__name__} was saved without a field {name!r}, which it has now: give it a default, "
        f"or register {kind.__name__} with a decode= that supplies the field"
    )
    raise NotDecodable(msg)


def _make_dataclass(kind: Any, fields: dict[str, Any]) -> object:
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        if field.name in fields:
            value = fields[field.name]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        elif not field.init:  # the saved object had no value for it either
            continue
        else:
            value = _field(kind, field.name)
        object.__setattr__(made, field.name, value)
    return made


def _make_model(kind: Any, fields: dict[str, Any]) -> object:
    values: dict[str, object] = {}
    unset: set[str] = set(fields.get("@unset", ()))
    for name, field in kind.model_fields.items():
        if name in fields:
            values[name] = fields[name]
        elif field.is_required():
            _field(kind, name)
        else:
            values[name] = field.get_default(call_default_factory=True, validated_data=values)
            unset.add(name)
    allows = kind.model_config.get("extra") == "allow"
    extra: dict[str, object] | None = fields.get("@extra", {}) if allows else None
    saved: dict[str, object] = fields.get("@private", {})
    private = {
        name: saved[name] if name in saved else attribute.get_default()
        for name, attribute in kind.__private_attributes__.items()
    }
    made = object.__new__(kind)
    object.__setattr__(made, "__dict__", values)
    object.__setattr__(made, "__pydantic_fields_set__", {*values, *(extra or ())} - unset)
    if kind.__pydantic_root_model__:  # a root model has neither of the two attributes below
        return made
    object.__setattr__(made, "__pydantic_extra__", extra)
    object.__setattr__(made, "__pydantic_private__", private or None)
    return made
