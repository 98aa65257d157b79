"""Burr's states: a view of ours for Burr's code, and the way back.

Invariants:
- A view is Burr's ``State`` to Burr's code, and holds a state of ours. Each operation on it is the
  same operation of ours: an append stays an append, and costs what it adds.
- A view shows and takes the fields that the action declares. Anything else raises our errors.
- Burr's code gets copies of lists and dicts, since a state of ours never changes. A copy that was
  changed in place and not given back is refused: Burr would have kept the change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn, cast, final

from burr.core.state import (
    AppendFields,
    DeleteField,
    ExtendFields,
    IncrementFields,
    SetFields,
    StateDelta,
)
from burr.core.state import State as BurrState
from burr.core.typing import DictBasedTypingSystem, TypingSystem

from shoal._errors.exceptions import BadResult, ChangedInPlace, kind_of
from shoal._state.collections import PositionedList, StateList, StateMap
from shoal._state.plain import to_plain
from shoal._state.state import Drop, Set, State, change_between, refuse_awaitable

_COLLECTIONS = (list, dict, StateList, StateMap, PositionedList)


@final
class Given:
    """The copies of collections that Burr's code was given, beside what they are copies of."""

    __slots__ = ("_copies",)

    def __init__(self) -> None:
        """Nothing was given yet."""
        # By field and identity: a value is copied once, so that two reads give the same object, as
        # with Burr. The value is kept, so that its id is not used again.
        self._copies: dict[tuple[str, int], tuple[object, object]] = {}

    def plain(self, field: str, value: object) -> object:
        """Return ``value``, the value of ``field``; of a collection of ours or Burr's a copy."""
        if not isinstance(value, _COLLECTIONS):
            return value
        place = field, id(cast("object", value))
        if place not in self._copies:
            self._copies[place] = cast("object", value), to_plain(cast("object", value))
        return self._copies[place][1]

    def changed(self) -> Collection[str]:
        """Return the fields of which a copy was changed in place."""
        return dict.fromkeys(
            field for (field, _), (value, copy) in self._copies.items() if not _equal(value, copy)
        )


def _equal(value: object, copy: object) -> bool:
    try:
        return bool(value == copy)
    except Exception:  # noqa: BLE001 # elements that don't compare, such as arrays, were replaced
        return False


@final
class View(BurrState[Any]):
    """A state of ours, as Burr's code knows states."""

    def __init__(self, ours: State, given: Given, typing_system: TypingSystem[Any] | None) -> None:
        """Show ``ours``.

        Args:
            ours: The state, narrowed to what an action may read and write.
            given: Receives the copies that are handed out.
            typing_system: Burr's, which makes the value of ``data``.
        """
        # Not Burr's own: it would hold a dict of all values, read or not.
        self.ours: State = ours
        self._given = given
        self._typing_system: TypingSystem[Any] = typing_system or DictBasedTypingSystem()

    @property
    def _state(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleUnannotatedOverride]
        return dict(self)

    def _with(self, ours: State) -> View:
        return View(ours, self._given, self._typing_system)

    # -- changing -------------------------------------------------------------------------------

    def apply_operation(self, operation: StateDelta) -> View:
        """Return the view after one of Burr's operations."""
        ours = self.ours
        match operation:
            case SetFields():
                return self._with(ours.update(operation.values))
            case AppendFields():
                return self._with(ours.append(**operation.values))
            case ExtendFields():
                return self._with(ours.extend(**operation.values))
            case IncrementFields():
                return self._with(ours.increment(**operation.values))
            case DeleteField():
                # Fields that are not there would be refused if they aren't declared.
                return self._with(ours.drop(*(key for key in operation.keys if key in ours._data)))
            case _:
                msg = (
                    f"{type(operation).__name__} is an operation that shoal doesn't know; use "
                    f"state.update, append, extend, increment or wipe"
                )
                raise BadResult(msg)

    def wipe(self, delete: list[str] | None = None, keep: list[str] | None = None) -> View:
        """Return the view without the fields in ``delete``, or without all that aren't in ``keep``.

        Each field that is dropped must be among those that the action writes.
        """
        if delete is not None and keep is not None:
            msg = f"wipe() takes delete= or keep=, not both: delete={delete}, keep={keep}"
            raise ValueError(msg)
        if delete is None:
            # All of the run's fields, as with Burr, also those that the action doesn't see: it is
            # refused rather than done in part.
            delete = [field for field in self.ours._data if field not in (keep or ())]
        return self.apply_operation(DeleteField(delete))

    def merge(self, other: BurrState[Any]) -> View:
        """Return the view with the fields of ``other``, those left out that are the same here."""
        own, theirs = dict(self), cast("Mapping[str, object]", other)
        values = {
            field: value
            for field, value in theirs.items()
            if field not in own or own[field] is not value
        }
        return self.apply_operation(SetFields(values))

    def with_typing_system(self, typing_system: TypingSystem[Any]) -> View:
        """Return the view with another typing system."""
        return View(self.ours, self._given, typing_system)

    # -- reading --------------------------------------------------------------------------------

    def __getitem__(self, field: str, /) -> Any:
        return self._given.plain(field, self.ours[field])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.ours)

    def __len__(self) -> int:
        return len(self.ours)

    def keys(self) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride] # as Burr's
        """Return the names of the fields, as a list."""
        return list(self.ours)

    @property
    def data(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the application's typing system makes of the fields."""
        return self._typing_system.construct_data(copied(self))

    def back(self, result: object, action: str, writes: Collection[str]) -> State:
        """Return the state of ours that Burr's code returned.

        Args:
            result: What it returned: a view that was made from this one.
            action: The name of the action.
            writes: The fields that are in the state after it, as it promises to Burr.

        Raises:
            BadResult: It is no such view, or lacks a field in ``writes``.
            ChangedInPlace: A list or dict of the state was changed in place.
        """
        if not isinstance(result, View):
            _refuse(result, action)
        after = result.ours
        change = change_between(self.ours, after, f"action {action!r}")
        dropped = {one.field for one in change.operations if isinstance(one, Drop)}
        missing = [one for one in writes if one not in after._data and one not in dropped]
        if missing:
            msg = (
                f"action {action!r} declares to write {', '.join(sorted(missing))}, and the state "
                f"that it returned doesn't have it: return state.update({min(missing)}=...)"
            )
            raise BadResult(msg)
        replaced = {one.field for one in change.operations if isinstance(one, Set)}
        for field in self._given.changed():
            if field not in replaced:
                self._refuse_changed(field, action)
        return after

    def _refuse_changed(self, field: str, action: str) -> NoReturn:
        msg = (
            f"action {action!r} changed field {field!r} in place and didn't return the change, "
            f"which Burr keeps and shoal can't save; give it to the new state: "
            f"return state.update({field}={field}), or state.append({field}=...). To change only a "
            f"copy of your own: {field} = copy.deepcopy(state[{field!r}]); a list's copy() shares "
            f"what is in it"
        )
        raise ChangedInPlace(msg, field)


def _refuse(result: object, action: str) -> NoReturn:
    refuse_awaitable(result, f"action {action!r}")
    if isinstance(result, BurrState):
        msg = (
            f"action {action!r} returned a State that was not made from the one it was given, so "
            f"its changes can't be known: return state.update(...) of the state passed in, not "
            f"State(...) or state.subset(...)"
        )
    else:
        msg = (
            f"action {action!r} returned {kind_of(result)}; an action of Burr returns the new "
            f"state, or its result and the new state: return state.update(...), or "
            f"return {{...}}, state.update(...)"
        )
    raise BadResult(msg)


def copied(fields: Mapping[str, object]) -> BurrState[Any]:
    """Return a state of Burr's own with copies of ``fields``: changes to it stay there."""
    return BurrState({field: to_plain(value) for field, value in fields.items()})


def outcome_of(output: object, action: str) -> tuple[Mapping[str, Any], object]:
    """Return the result and the state that a single-step action returned.

    Raises:
        BadResult: It returned neither a state nor a pair of the two.
    """
    if isinstance(output, tuple):
        pair = cast("Sequence[object]", output)
        if len(pair) == 2 and isinstance(pair[0], dict):  # noqa: PLR2004 # result and state
            return cast("Mapping[str, Any]", pair[0]), pair[1]
        if len(pair) == 2 and hasattr(pair[0], "model_dump"):  # noqa: PLR2004 # a typed result
            return {}, pair[1]
        _refuse(pair, action)
    return {}, output
