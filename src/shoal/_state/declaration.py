"""Read a user's model: its fields, and the types of their values.

A model is a pydantic model, a dataclass or a TypedDict. pydantic is imported when the first model
is read, so programs without one need not install it.
"""

from __future__ import annotations

import collections
import dataclasses
import typing
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, cast, final

from shoal._errors.exceptions import DefinitionError, brief

from .collections import PositionedList, StateList, StateMap

if TYPE_CHECKING:
    from pydantic import BaseModel, ConfigDict
    from pydantic.fields import FieldInfo


# -- reading annotations ---------------------------------------------------------------------------


@final
class Growing(NamedTuple):
    """A collection that an annotation allows."""

    mapping: bool
    item: object
    """The annotation of its items, or of its values."""
    key: object = None
    most: float = inf
    """The most items it may have."""


_LISTS: frozenset[object] = frozenset(
    {list, tuple, set, frozenset, collections.deque}
    | {abc.Sequence, abc.MutableSequence, abc.Set, abc.MutableSet, abc.Collection}
)
_MAPPINGS: frozenset[object] = frozenset(
    {dict, collections.OrderedDict, collections.defaultdict, abc.Mapping, abc.MutableMapping}
)
_ONE_SHOT: frozenset[object] = frozenset({abc.Iterable, abc.Iterator, abc.Generator})
OURS: dict[object, str] = {StateList: "list", PositionedList: "list", StateMap: "dict"}
"""The persistent collections, and the type that a model declares in place of each."""


def collections_in(annotation: Any) -> Iterator[Growing]:
    """Yield each collection that an annotation allows, with the types of its items.

    Raises:
        DefinitionError: A state can't hold a collection of this type.
    """
    origin = typing.get_origin(annotation) or annotation
    args = typing.get_args(annotation)
    if origin is typing.Annotated:
        most = min(map(_max_length, annotation.__metadata__), default=inf)
        for each in collections_in(args[0]):
            yield each._replace(most=min(each.most, most))
    elif _is_union(origin):
        for each in args:
            yield from collections_in(each)
    elif isinstance(annotation, typing.NewType):
        yield from collections_in(annotation.__supertype__)
    elif hasattr(origin, "__value__"):  # type Links = list[str]
        yield from collections_in(origin.__value__[args] if args else origin.__value__)
    elif isinstance(annotation, TypeVar):
        if not annotation.__constraints__:
            yield from collections_in(annotation.__bound__ or Any)
    elif annotation in (Any, object):
        yield Growing(mapping=False, item=Any)
        yield Growing(mapping=True, item=Any, key=Any)
    elif origin in _MAPPINGS:
        key, item = args or (Any, Any)
        yield Growing(mapping=True, item=item, key=key)
    elif origin in _LISTS:
        item, *rest = args or (Any, ...)
        if rest == [...] or (origin is not tuple and not rest):
            yield Growing(mapping=False, item=item)
    elif origin in _ONE_SHOT:
        msg = "could be read only once: say list[...] or Sequence[...]"
        raise DefinitionError(msg)
    elif origin in OURS:
        msg = f"is plain in the model that comes out of a state: say {OURS[origin]}[...]"
        raise DefinitionError(msg)


def _is_union(origin: object) -> bool:
    return origin is typing.Union or getattr(origin, "__name__", None) == "UnionType"


def any_of(annotations: list[object]) -> object:
    """Return the union of several annotations."""
    if len(annotations) == 1:
        return annotations[0]
    return cast("Any", typing.Union)[tuple(annotations)]


def _max_length(metadata: object) -> float:
    """Return the bound of ``Field(max_length=3)``, or of the metadata that pydantic makes of it."""
    found = getattr(metadata, "max_length", None)
    within: Iterable[object] = getattr(metadata, "metadata", ())
    return min([inf if found is None else found, *map(_max_length, within)])


# -- reading models --------------------------------------------------------------------------------


@final
class Declared(NamedTuple):
    """One field as its model declares it."""

    annotation: Any
    required: bool
    default: Callable[[dict[str, object]], object] | None = None


@final
class Declaration(NamedTuple):
    """A model of any of the three kinds."""

    fields: dict[str, Declared]
    config: ConfigDict
    instances: tuple[type, ...]
    """The classes of its instances; none if instances are plain dicts."""
    make: Callable[[dict[str, object]], object]
    derived: frozenset[str] = frozenset()
    """Fields that an instance has although it can't be made with them."""


def declaration(model: object) -> Declaration:
    """Read the fields that a model declares.

    Raises:
        DefinitionError: It is not a model, or has a field that a state can't hold; or pydantic is
            not installed.
    """
    try:
        from pydantic import BaseModel, RootModel  # noqa: PLC0415 # optional
        from typing_extensions import is_typeddict  # noqa: PLC0415 # pydantic needs it too
    except ImportError as error:
        msg = "a typed state needs pydantic: pip install shoal[pydantic]"
        raise DefinitionError(msg) from error

    try:
        match model:
            case type() if issubclass(model, RootModel):
                _refuse(f"the RootModel {model.__name__}, which has no fields")
            case type() if issubclass(model, BaseModel):
                return _of_pydantic(model)
            case type() if is_typeddict(model):
                return _of_typed_dict(model)
            case type() if dataclasses.is_dataclass(model):
                return _of_dataclass(model)
            case _:
                _refuse(_what_it_is(model))
    except DefinitionError:
        raise
    except Exception as error:  # evaluating a user's annotations can raise anything
        msg = (
            f"an annotation of model {cast('type', model).__name__} can't be read: "
            f"{explained(error)}. Define what it names at the top of a module, outside of "
            f"`if TYPE_CHECKING`"
        )
        raise DefinitionError(msg) from error


def explained(error: Exception) -> str:
    """Return an error's message without pydantic's link to further information."""
    return str(error).partition("\n\nFor further information")[0].strip()


def _refuse(found: str) -> NoReturn:
    msg = f"a state's model is a pydantic model, a dataclass or a TypedDict, not {found}"
    raise DefinitionError(msg)


def shown(value: object) -> str:
    """Return a value and its type as messages show them."""
    return f"{brief(value)} ({type(value).__name__})"


def _what_it_is(model: object) -> str:
    if isinstance(model, type):
        return f"the class {model.__name__}, which is none of them"
    if isinstance(typing.get_origin(model), type):  # Box[int]
        return f"{model}: make a subclass of it"
    if dataclasses.is_dataclass(model) or hasattr(model, "__pydantic_fields__"):
        return f"{shown(model)}: give the class, not an instance"
    return shown(model)


def _of_pydantic(model: type[BaseModel]) -> Declaration:
    if not model.__pydantic_complete__:  # it names a class that was defined after it
        model.model_rebuild()
    return Declaration(
        fields=_declared_by(model.model_fields),
        config=_settings(model.model_config),
        instances=(model,),
        make=partial(model.model_validate, by_alias=False, by_name=True),
    )


def _of_dataclass(model: type[Any]) -> Declaration:
    from pydantic import dataclasses as validating  # noqa: PLC0415 # optional

    hints = typing.get_type_hints(model, include_extras=True)
    for name, hint in hints.items():
        if hint is dataclasses.InitVar or isinstance(hint, dataclasses.InitVar):
            msg = (
                f"model {model.__name__} has {name!r} as an InitVar, which leaves no value for a "
                f"state to hold: make it a field"
            )
            raise DefinitionError(msg)
    own = [field for field in dataclasses.fields(model) if field.init]
    make: Callable[[dict[str, object]], object] = lambda fields: model(**fields)  # noqa: E731
    if validating.is_pydantic_dataclass(model):
        validating.rebuild_dataclass(model)
        infos = model.__pydantic_fields__
        declared = _declared_by(
            {field.name: infos[field.name] for field in own if infos[field.name].init is not False}
        )
        validate = model.__pydantic_validator__.validate_python
        make = partial(validate, by_alias=False, by_name=True)
    else:
        declared = {
            field.name: Declared(
                _checkable(hints[field.name]),
                required=_default_of(field) is None,
                default=_default_of(field),
            )
            for field in own
        }
    return Declaration(
        fields=declared,
        config=_settings(getattr(model, "__pydantic_config__", None)),
        instances=(model,),
        make=make,
        derived=frozenset(field.name for field in dataclasses.fields(model)) - declared.keys(),
    )


def _of_typed_dict(model: type[Any]) -> Declaration:
    required: frozenset[str] = model.__required_keys__
    declared: dict[str, Declared] = {}
    for name, hint in typing.get_type_hints(model, include_extras=True).items():
        _, qualifiers = _unqualified(hint)
        declared[name] = Declared(
            _checkable(hint),
            # If annotations are strings, __required_keys__ was computed without the qualifiers.
            typing.Required in qualifiers
            or (name in required and typing.NotRequired not in qualifiers),
        )
    return Declaration(
        fields=declared,
        config=_settings(getattr(model, "__pydantic_config__", None)),
        instances=(),
        make=dict,
    )


def _settings(config: ConfigDict | None) -> ConfigDict:
    """Return settings that check any class by isinstance, and that check all annotations now.

    Without ``defer_build=False`` an annotation that can't be checked would raise in the first run.
    """
    settings = cast("dict[str, object]", config or {})
    return cast("ConfigDict", {**settings, "arbitrary_types_allowed": True, "defer_build": False})


def _declared_by(infos: Mapping[str, FieldInfo]) -> dict[str, Declared]:
    return {
        name: Declared(
            _annotation(info),
            required=info.is_required(),
            default=None if info.is_required() else partial(_default_in, info),
        )
        for name, info in infos.items()
    }


def _default_in(info: FieldInfo, before: dict[str, object]) -> object:
    return info.get_default(call_default_factory=True, validated_data=before)


def _default_of(field: dataclasses.Field[Any]) -> Callable[[dict[str, object]], object] | None:
    if field.default_factory is not dataclasses.MISSING:
        factory = field.default_factory
        return lambda _: factory()
    if field.default is not dataclasses.MISSING:
        return lambda _: field.default
    return None


def _checkable(hint: Any) -> Any:
    """Return the part of an annotation that a value is checked against."""
    from pydantic.fields import FieldInfo  # noqa: PLC0415 # optional

    bare, _ = _unqualified(hint)
    return _annotation(FieldInfo.from_annotation(bare))


def _annotation(info: FieldInfo) -> Any:
    """Return the type that a pydantic field is checked against, without aliases and the like."""
    from pydantic import Field  # noqa: PLC0415 # optional

    extras = list(info.metadata)
    if info.discriminator is not None:
        extras.append(Field(discriminator=info.discriminator))
    if not extras:
        return info.annotation
    return cast("Any", typing.Annotated)[(info.annotation, *extras)]


def _unqualified(hint: Any) -> tuple[Any, set[object]]:
    """Return an annotation without ``Required[...]`` and the like, and these qualifiers."""
    from typing_extensions import ReadOnly  # noqa: PLC0415 # pydantic needs it too

    qualifiers: set[object] = set()
    origin = typing.get_origin(hint)
    while origin in (typing.Required, typing.NotRequired, typing.Final, ReadOnly):
        qualifiers.add(origin)
        (hint,) = typing.get_args(hint)
        origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        inner, within = _unqualified(hint.__origin__)
        return cast("Any", typing.Annotated)[(inner, *hint.__metadata__)], qualifiers | within
    return hint, qualifiers
