"""Fan-outs: acts whose work is children. Imports everything above.

Invariants:
- Every outcome is applied to the parent's state by one numbered update, in the parent's task, on
  top of the one before; a batch of them is one save. ``reduce`` for one child sees what ``reduce``
  for the one before it left.
- Every key ends in exactly one outcome. The ledger keeps counts, and the outcomes that are not Done.
- A child starts from the parent's state as it was when the step began, narrowed to what its graph
  needs; siblings don't see each other's results.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, cast, final

from ._action import Act, Performer, field_names, require_plain
from ._collections import PositionedList, StateMap
from ._errors import BadKey, DefinitionError, DepthExceeded, MissingField, StateError
from ._events import ErrorInfo, Outcome, Update
from ._graph import Graph, as_graph
from ._group import Group
from ._policy import Limits, OnError
from ._run import Run, Setting
from ._source import Elements, Entry
from ._state import (
    NO_CHANGE,
    Change,
    Operation,
    Permit,
    Put,
    Set,
    State,
    change_between,
    make_state,
)

logger = logging.getLogger("shoal")

Over = str | Callable[[State], Iterable[Any] | AsyncIterable[Any]]
Reduce = Callable[[State, Outcome], State]
Grow = Callable[[State, Outcome], Iterable[Any]]
Take = str | Sequence[str] | Callable[[State], Any]


@final
@dataclass(slots=True)
class Ledger:
    """How the children of a fan-out ended: counts, and the outcomes that are not Done.

    Iterate it for those outcomes, in input order.
    """

    done: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    dropped: int = 0
    """Elements that ``grow`` (or ``over``, with ``grow``) repeated, which made no child."""
    _rest: list[Outcome] | None = None

    @property
    def total(self) -> int:
        """Outcomes in all."""
        return self.done + self.failed + self.cancelled + self.skipped

    def __iter__(self) -> Iterator[Outcome]:
        """Go through the outcomes that are not Done, in input order."""
        return iter(sorted(self._rest or (), key=lambda outcome: outcome.position))

    def __len__(self) -> int:
        """Count the outcomes that are not Done."""
        return len(self._rest or ())

    def enter(self, child: Run) -> None:
        """Count a child's end, and keep its outcome if it is not Done."""
        match child.status:
            case "succeeded":
                self.done += 1
                return
            case "failed":
                self.failed += 1
            case "cancelled":
                self.cancelled += 1
            case None:
                self.skipped += 1
        if self._rest is None:
            self._rest = []
        self._rest.append(child.outcome)


@final
class FanOut(Act):
    """An act that runs a child for each element. Made by ``fan_out``."""

    def __init__(
        self,
        graph: Graph,
        *,
        act_name: str,
        name: str,
        over: Over,
        item: str,
        key: str | Callable[[Any], object] | None,
        into: str | None,
        take: Take | None,
        errors_into: str | None,
        reduce: Reduce | None,
        grow: Grow | None,
        at_most: int | None,
        on_error: OnError,
        limits: Limits,
        reads: frozenset[str],
        writes: frozenset[str],
    ) -> None:
        """Use ``fan_out``, which checks all this."""
        self.graph = graph
        self.act_name = act_name
        self.name = name
        self.over = over
        self.item = item
        self.key = key
        self.into = into
        self.take = take
        self.errors_into = errors_into
        self.reduce = reduce
        self.grow = grow
        self.at_most = at_most
        self.on_error = on_error
        self.limits = limits
        self.child_reads = graph.reads - {item}
        over_field = {over} if isinstance(over, str) else set[str]()
        self.writes = writes | {field for field in (into, errors_into) if field is not None}
        self.reads = reads | self.child_reads | over_field
        self.permit = Permit(name, self.reads | self.writes, self.writes)

    @property
    def required_inputs(self) -> Mapping[str, str]:
        """Inputs without a default that its children need."""
        return self.graph.required_inputs

    async def perform(self, run: Performer) -> Change:
        """Run all children; see ``Act.perform``."""
        assert isinstance(run, Run), "fan-outs are performed by the engine's runs"
        await _Execution(self, run).run()
        return NO_CHANGE

    def value_of(self, child: Run) -> object:
        """Read a child's value off its final state."""
        take = self.take
        if isinstance(take, str):
            return self._field(child, take)
        if take is None:
            return None
        if callable(take):
            return take(make_state(child.final_data()))
        return {field: self._field(child, field) for field in take}

    def _field(self, child: Run, field: str) -> object:
        try:
            return child.final_field(field)
        except KeyError:
            msg = (
                f"fan-out {self.name!r} takes field {field!r} of each child, "
                f"but this one never wrote it"
            )
            raise MissingField(msg) from None

    def key_field(self, element: object) -> object:
        """Return the key of an element where ``key=`` names a field of it."""
        assert isinstance(self.key, str)
        try:
            if isinstance(element, Mapping):
                return cast("Mapping[str, object]", element)[self.key]
            return getattr(element, self.key)
        except (KeyError, AttributeError):
            msg = (
                f"fan-out {self.name!r}: key={self.key!r} names a field of each element, "
                f"but {element!r:.100} has none of that name"
            )
            raise BadKey(msg) from None

    def __repr__(self) -> str:
        return f"<fan_out {self.name} of {self.act_name}>"


@final
class _Execution:
    """One execution of a fan-out by one run."""

    def __init__(self, fan_out: FanOut, run: Run) -> None:
        self.fan_out = fan_out
        self.parent = run
        self.ledger = Ledger()
        self.failures: list[Run] = []
        setting = run.setting
        if run.path.depth >= setting.services.max_depth:
            msg = (
                f"fan-out {fan_out.name!r} would run {run.path.depth + 1} levels below the root; "
                f"at most {setting.services.max_depth} are allowed: does it contain itself?"
            )
            raise DepthExceeded(msg)
        self.setting = Setting(
            graph=fan_out.graph,
            inputs=setting.inputs,
            services=setting.services,
            hooks=setting.hooks,
            act=fan_out.act_name,
            parent=run.path,
            step=fan_out.name,
            value_of=None if fan_out.take is None else fan_out.value_of,
        )
        run.ledgers[fan_out.name] = self.ledger

    async def run(self) -> None:
        fan_out = self.fan_out
        base = self._narrowed()
        done = await self._open()
        self.elements = Elements(
            self._over(),
            who=fan_out.name,
            setting=self.setting,
            base=base,
            item=fan_out.item,
            key_of=fan_out.key_field if isinstance(fan_out.key, str) else fan_out.key,
            grows=fan_out.grow is not None,
            at_most=fan_out.at_most,
            done=done,
        )
        group = Group(self.parent, self.elements, fan_out.limits.n)
        self.group = group
        try:
            await group.live(self._apply)
        except BaseException as error:
            try:
                await self._record_unapplied(group)
            except Exception as failure:  # must not hide a cancellation
                logger.exception("ends of children of %r were not recorded", fan_out.name)
                error.add_note(f"shoal: then {failure!r}, when recording what was cancelled")
            raise
        finally:
            self.ledger.dropped = self.elements.dropped
            self.elements.close()
        await self._record_unapplied(group)
        if self.failures:
            raise self._group_of_failures()

    # -- beginning ------------------------------------------------------------------------------

    def _narrowed(self) -> dict[str, object]:
        """Take from the parent's state what every child starts with."""
        data = self.parent.data
        base: dict[str, object] = {}
        for field in self.fan_out.child_reads:
            if field not in data:
                msg = (
                    f"the children of fan-out {self.fan_out.name!r} read field {field!r}, which "
                    f"neither the state has (it has: {', '.join(sorted(data)) or 'none'}) nor the "
                    f"element brings, which they get as {self.fan_out.item!r}; "
                    f"name it with item=... or write the field in an earlier action"
                )
                raise MissingField(msg)
            base[field] = data[field]
        return base

    def _over(self) -> object:
        over = self.fan_out.over
        if callable(over):
            return over(make_state(self.parent.data, self.fan_out.permit))
        try:
            return self.parent.data[over]
        except KeyError:
            msg = (
                f"fan-out {self.fan_out.name!r} runs over field {over!r}, which the state does "
                f"not have (it has: {', '.join(sorted(self.parent.data)) or 'none'})"
            )
            raise MissingField(msg) from None

    async def _open(self) -> frozenset[object]:
        """Start the collections; return the keys that need no child: inputs minus outputs."""
        fan_out, run = self.fan_out, self.parent
        operations: list[Operation] = []
        values: dict[str, object] = {}
        done: frozenset[object] = frozenset()
        if fan_out.into is not None:
            found = run.data.get(fan_out.into)
            if fan_out.key is None:
                fresh: object = PositionedList[object](StateMap())
            elif found is None or fan_out.grow is not None:
                fresh = StateMap[object, object]()
            elif isinstance(found, Mapping):
                known = cast("Mapping[object, object]", found)
                done = frozenset(known)
                fresh = StateMap(known)
            else:
                msg = (
                    f"fan-out {fan_out.name!r} collects a mapping into {fan_out.into!r}, "
                    f"which holds a {type(found).__name__}"
                )
                raise StateError(msg)
            values[fan_out.into] = fresh
        if fan_out.errors_into is not None:
            values[fan_out.errors_into] = StateMap[object, object]()
        operations = [Set(field, value) for field, value in values.items()]
        if operations:
            update = Update(run.number + 1, fan_out.name, tuple(operations))
            await run.commit((update,), {**run.data, **values})
        return done

    # -- applying -------------------------------------------------------------------------------

    async def _apply(self, batch: list[Run]) -> str | None:
        """Commit what ended; return why the rest is to be cancelled, if it is to be."""
        draft = _Draft(self.fan_out, self.parent, self.elements)
        error = draft.add_all(batch)
        for child in batch:
            self.ledger.enter(child)
        self.failures += draft.failures
        await self.parent.commit(draft.updates, draft.finished_data(), unapplied=draft.unapplied)
        self.elements.admit(draft.admitted)
        if error is not None:
            raise error
        if not self.failures:
            return None
        first = self.failures[0]
        return f"key {first.key!r} of fan-out {self.fan_out.name!r} failed: {first.error!r:.200}"

    # -- ending ---------------------------------------------------------------------------------

    async def _record_unapplied(self, group: Group) -> None:
        """Record how those ended that were cancelled, or came too late to be applied."""
        late = sorted(group.inbox, key=lambda child: child.position)
        group.inbox.clear()
        if not late:
            return
        for child in late:
            if child.status == "succeeded":
                child.miss()
            elif child.status == "failed" and self.fan_out.on_error == "fail":
                self.failures.append(child)
            self.ledger.enter(child)
        await self.parent.commit((), self.parent.data, unapplied=late)

    def _group_of_failures(self) -> ExceptionGroup[Exception]:
        failed = sorted(self.failures, key=lambda child: child.position)
        errors = [child.error for child in failed if isinstance(child.error, Exception)]
        self.failures.clear()
        count = "a child" if len(errors) == 1 else f"{len(errors)} children"
        return ExceptionGroup(f"{count} of fan-out {self.fan_out.name!r} failed", errors)


@final
class _Draft:
    """A batch of outcomes on their way into the parent's state: one numbered update for each."""

    __slots__ = (
        "_data",
        "_elements",
        "_errors",
        "_fan_out",
        "_number",
        "_values",
        "admitted",
        "failures",
        "unapplied",
        "updates",
    )

    def __init__(self, fan_out: FanOut, parent: Run, elements: Elements) -> None:
        self._fan_out = fan_out
        self._elements = elements
        self._data = parent.data
        self._number = parent.number
        self._values: list[_Placed] = []  # puts not yet in _data: a batch of them costs one copy
        self._errors: list[_Placed] = []
        self.updates: list[Update] = []
        self.unapplied: list[Run] = []
        self.failures: list[Run] = []
        self.admitted: list[Entry] = []

    def add_all(self, batch: list[Run]) -> Exception | None:
        """Add outcomes up to the first that can't be applied; return why not, naming its key."""
        for at, child in enumerate(batch):
            try:
                self._add(child)
            except Exception as error:
                name, path = self._fan_out.name, child.path
                error.add_note(f"shoal: fan-out {name!r} applying key {child.key!r}, run {path.id}")
                self.unapplied += batch[at:]
                for missed in batch[at:]:
                    missed.miss()
                return error
        return None

    def finished_data(self) -> Mapping[str, object]:
        """Return the fields of the state after all updates."""
        for field, placed in (
            (self._fan_out.into, self._values),
            (self._fan_out.errors_into, self._errors),
        ):
            if field is not None and placed:
                grown = cast("_Collection", self._data[field]).put_all(placed)
                self._data = {**self._data, field: grown}
                placed.clear()
        return self._data

    def _add(self, child: Run) -> None:
        fan_out = self._fan_out
        operations: tuple[Operation, ...] = ()
        discovered: list[Entry] = []
        if child.status == "failed" and fan_out.on_error == "fail":
            self.failures.append(child)
            self.unapplied.append(child)
            return
        if child.status == "succeeded":
            if fan_out.into is not None:
                operations = (self._put(fan_out.into, child, child.value, self._values),)
        elif child.status == "failed":
            if fan_out.errors_into is not None:
                info = error_info(cast("Exception", child.error))
                operations = (self._put(fan_out.errors_into, child, info, self._errors),)
        elif fan_out.into is not None:  # skipped: only its place among the others changes
            known = cast("Mapping[object, object]", self._data[fan_out.into])[child.key]
            operations = (self._put(fan_out.into, child, known, self._values),)
        if child.status is not None:
            if fan_out.reduce is not None:
                operations += self._reduce(fan_out.reduce, child.outcome)
            if fan_out.grow is not None:
                state = make_state(self.finished_data(), fan_out.permit)
                discovered = self._elements.grow(fan_out.grow(state, child.outcome), child.key)
                self.admitted += discovered
        self._number += 1
        new = tuple(element for _, _, element in discovered)
        self.updates.append(Update(self._number, fan_out.name, operations, child, new))

    def _put(self, field: str, child: Run, value: object, placed: list[_Placed]) -> Put:
        placed.append((child.key, value, child.position))
        return Put(field, child.key, value, child.position)

    def _reduce(self, reduce: Reduce, outcome: Outcome) -> tuple[Operation, ...]:
        base = make_state(self.finished_data(), self._fan_out.permit)
        who = f"reduce of fan-out {self._fan_out.name!r}, for key {outcome.key!r},"
        change = change_between(base, reduce(base, outcome), who)
        self._data = change.applied_to(self._data)
        return change.operations


_Placed = tuple[Any, Any, float | None]
_Collection = StateMap[object, object] | PositionedList[object]


def error_info(error: Exception) -> ErrorInfo:
    """Make an error into data."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    text = "".join(traceback.format_exception(error))
    return ErrorInfo(type=f"{module}{kind.__qualname__}", message=str(error), traceback=text)


def fan_out(
    act: Act | Graph,
    *,
    over: Over,
    item: str = "item",
    key: str | Callable[[Any], object] | None = None,
    into: str | None = None,
    take: Take | None = None,
    errors_into: str | None = None,
    reduce: Reduce | None = None,
    grow: Grow | None = None,
    at_most: int | None = None,
    on_error: OnError = "fail",
    limits: Limits | None = None,
    name: str | None = None,
    reads: Iterable[str] = (),
    writes: Iterable[str] = (),
) -> FanOut:
    """Make an act that runs a child for each of many elements, all at once, and joins the results.

    Every child is a run of its own: it starts from the parent's state as it was when the step
    began, narrowed to what ``act`` reads, plus its element. Elements are pulled as there is room.
    When a child ends, its result is applied to the parent's state at once, by an update like any
    other: saved, published, and seen by hooks.

    If the step is cancelled, so are its children; it ends when their cleanup has, and what had been
    applied stays. Nothing that it started outlives it.

    Args:
        act: What each child executes: an action, a graph, or another fan-out.
        over: The elements: a field of the state, or a plain function of the state that returns an
            iterable or async iterable. Infinite ones are fine.
        item: The field in which a child finds its element.
        key: What names a child: a plain function of the element that returns a str or int, or the
            name of a field of it. Without it, its position. Keys make work idempotent: an element
            whose key is in ``into`` from the start is skipped.
        into: The field that collects the children's values: with ``key`` a mapping, without it a
            list; in input order at every moment, whatever order they end in.
        take: What of a child's final state is its value: a field, a list of fields (for a dict of
            them), or a plain function of that state. By default the field that is called as
            ``into``, or the only one that ``act`` writes.
        errors_into: The field that collects failures, as a mapping of key to ``ErrorInfo``.
        reduce: Instead of ``into``: a plain function ``(state, outcome) -> state``, called for each
            result as it arrives, and for failures that don't end the step. It sees the fan-out's
            ``reads`` and ``writes``.
        grow: A plain function ``(state, outcome) -> new elements``, called after the result was
            reduced: a frontier that discovers its own work. Elements whose key is known are dropped
            and counted, here and in ``over``.
        at_most: Children to start in all.
        on_error: ``"fail"``: the first failure cancels the others, and the step raises an
            ``ExceptionGroup`` of all failures, in input order. ``"collect"``: failures are data, for
            ``errors_into``, ``reduce`` and the result's ledger.
        limits: How many children are in flight; 100 by default.
        name: What the fan-out is called; by default the name in ``into``.
        reads: Fields that ``over`` (if a function), ``reduce`` and ``grow`` read; those that the
            children and ``over`` (if a field) read are known.
        writes: Fields that ``reduce`` writes; ``into`` and ``errors_into`` are known.

    Raises:
        DefinitionError: The arguments don't fit together, and why.

    While it runs, the step raises ``BadKey`` for a repeated key, ``BadResult`` where ``reduce`` or
    ``grow`` returns what it must not, and whatever ``over``, ``key``, ``reduce`` or ``grow`` raise.

    Example:
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> squares = fan_out(square, over="numbers", item="n", into="squares", take="square")
        >>> Application(squares).run_sync({"numbers": [1, 2, 3]}).state["squares"]
        [1, 4, 9]
    """
    graph = as_graph(act, "fan_out")
    label = name or into or errors_into
    if not label:
        msg = "a fan_out without into= needs a name: fan_out(..., name=...)"
        raise DefinitionError(msg)
    checks = _Checks(label)
    checks.functions(over=over, key=key, take=take, reduce=reduce, grow=grow)
    checks.over(over, reads)
    checks.results(into, errors_into, reduce, item, graph)
    checks.counts(at_most, on_error)
    return FanOut(
        graph,
        act_name=graph.name,
        name=label,
        over=over,
        item=item,
        key=key,
        into=into,
        take=checks.take(take, into, graph),
        errors_into=errors_into,
        reduce=reduce,
        grow=grow,
        at_most=at_most,
        on_error=on_error,
        limits=limits if limits is not None else Limits(),
        reads=field_names(reads, "reads"),
        writes=checks.writes(writes, reduce),
    )


class _Checks(NamedTuple):
    """What is refused when a fan-out is built."""

    name: str

    def refuse(self, why: str) -> NoReturn:
        msg = f"fan_out {self.name!r}: {why}"
        raise DefinitionError(msg)

    def functions(self, **given: object) -> None:
        for parameter, value in given.items():
            if value is None or isinstance(value, str):
                continue
            if parameter == "take" and isinstance(value, Sequence):
                continue
            if parameter == "over":
                if not callable(value):
                    self.refuse(
                        f"over= takes the name of a field or a function of the state, not a "
                        f"{type(value).__name__}; pass the elements to run() in a field, "
                        f"or write over=lambda state: elements"
                    )
                if inspect.isasyncgenfunction(value):
                    continue  # calling it waits for nothing: it gives an async iterable
            require_plain(value, f"fan_out {self.name!r}: {parameter}=")

    def over(self, over: Over, reads: Iterable[str]) -> None:
        if callable(over) and not tuple(reads):
            self.refuse(
                "over= is a function, so what it reads of the state can't be known; "
                "declare it: reads=[...]"
            )

    def results(
        self,
        into: str | None,
        errors_into: str | None,
        reduce: Reduce | None,
        item: str,
        graph: Graph,
    ) -> None:
        if into is not None and reduce is not None:
            self.refuse("into= and reduce= both say what becomes of results; give one of them")
        if into is not None and into == errors_into:
            self.refuse(f"into= and errors_into= are both {into!r}; name two fields")
        if item in graph.writes:
            self.refuse(f"{graph.name!r} writes {item!r}, the field that holds its element")

    def take(self, take: Take | None, into: str | None, graph: Graph) -> Take | None:
        if take is None:
            if into in graph.writes:
                return into
            if len(graph.writes) == 1:
                return next(iter(graph.writes))
            if into is None:
                return None
            self.refuse(
                f"which of the fields that {graph.name!r} writes "
                f"({', '.join(sorted(graph.writes)) or 'none'}) goes into {into!r}? give take=..."
            )
        fields = (take,) if isinstance(take, str) else () if callable(take) else tuple(take)
        for field in fields:
            if field not in graph.writes | graph.reads:
                self.refuse(
                    f"take={field!r} is no field that {graph.name!r} writes "
                    f"(it writes: {', '.join(sorted(graph.writes)) or 'none'})"
                )
        return take

    def counts(self, at_most: int | None, on_error: str) -> None:
        if at_most is not None and (type(at_most) is not int or at_most < 0):
            self.refuse(f"at_most= takes a number of children, not {at_most!r}")
        if on_error not in ("fail", "collect"):
            self.refuse(f"on_error= is 'fail' or 'collect', not {on_error!r}")

    def writes(self, writes: Iterable[str], reduce: Reduce | None) -> frozenset[str]:
        fields = field_names(writes, "writes")
        if reduce is not None and not fields:
            self.refuse("what reduce= writes can't be known; declare it: writes=[...]")
        return fields
