"""Fan-outs: acts whose work is children. Imports everything above.

Invariants:
- A batch of outcomes is one save, made in the parent's task; what ended unapplied is saved too.
- A child starts from the parent's state as it was when the step began, narrowed to what its graph
  needs; siblings don't see each other's results.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, NoReturn, TypeGuard, cast, final, overload

from ._action import Act, Input, Performer, field_names, require_plain
from ._errors import BadKey, DefinitionError, DepthExceeded, MissingField, brief, note
from ._events import Done, Update
from ._graph import Graph, as_graph
from ._group import Group
from ._join import Draft, Grow, Join, Ledger, Reduce, Take
from ._policy import Limits, OnError
from ._run import Run, Setting
from ._source import Elements
from ._state import NO_CHANGE, Change, Permit, Set, State, make_state

logger = logging.getLogger("shoal")

Over = str | Callable[[State], Iterable[Any] | AsyncIterable[Any]]


@final
class FanOut(Act):
    """An act that runs a child for each element. Made by ``fan_out``."""

    def __init__(
        self,
        graph: Graph,
        *,
        over: Over,
        item: str,
        key: str | Callable[[Any], object] | None,
        join: Join,
        at_most: int | None,
        limits: Limits,
        reads: frozenset[str],
    ) -> None:
        """Use ``fan_out``, which checks all this."""
        self.graph = graph
        self.name: str = join.name
        self.over = over
        self.item = item
        self.key = key
        self.join = join
        self.at_most = at_most
        self.limits = limits
        self.child_reads: list[str] = sorted(graph.reads - {item})
        self.reads = reads
        self.writes = join.permit.writes
        self.sure_writes = frozenset(f for f in (join.into, join.errors_into) if f is not None)

    @property
    def takes(self) -> Mapping[str, Input]:
        """What its children take besides fields, by name."""
        return self.graph.takes

    @property
    def takes_more(self) -> bool:
        """Whether its children may take inputs that nobody knows before they run."""
        return self.graph.takes_more

    @property
    def needed_by(self) -> Mapping[str, str]:
        """What it runs over, if that is a field, and what its children can't do without."""
        needed = {
            field: f"{who} in fan-out {self.name!r}, whose element is {self.item!r},"
            for field, who in self.graph.needed_by.items()
            if field != self.item
        }
        if isinstance(self.over, str):
            needed[self.over] = f"fan-out {self.name!r}, which runs over it,"
        return needed

    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        permit = self.join.permit
        self.name = name
        self.join = replace(self.join, name=name, permit=Permit(name, permit.reads, permit.writes))
        self.graph = self.graph.bind(name=None, **inputs)

    async def perform(self, run: Performer) -> Change:
        """Run all children; see ``Act.perform``."""
        assert isinstance(run, Run), "fan-outs are performed by the engine's runs"
        await _Execution(self, run).run()
        return NO_CHANGE

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
                f"but {brief(cast('object', element))} has none of that name"
            )
            raise BadKey(msg) from None

    def __repr__(self) -> str:
        return f"<fan_out {self.name} of {self.graph.name}>"


@final
class _Execution:
    """One execution of a fan-out by one run."""

    def __init__(self, fan_out: FanOut, run: Run) -> None:
        self.fan_out = fan_out
        self.parent = run
        self.ledger = Ledger()
        self.raises = fan_out.join.on_error == "fail"
        self.failures: list[Run] = []
        self.unsaved: list[Run] = []  # a batch that could not be saved
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
            execution=setting.execution,
            act=fan_out.graph.name,
            parent=run.path,
            step=fan_out.name,
            visit=run.visit(fan_out.name),
            value_of=None if fan_out.join.take is None else fan_out.join.value_of,
        )
        run.ledgers[fan_out.name] = self.ledger

    async def run(self) -> None:
        fan_out = self.fan_out
        base = self._narrowed()
        over = self._over()  # before the collections start: it may be over one of them
        done = await self._open()
        self.elements = Elements(
            over,
            who=fan_out.name,
            setting=self.setting,
            base=base,
            item=fan_out.item,
            key_of=fan_out.key_field if isinstance(fan_out.key, str) else fan_out.key,
            grows=fan_out.join.grow is not None,
            at_most=fan_out.at_most,
            done=done,
            done_in=fan_out.join.into,
        )
        group = Group(self.parent, self.elements, fan_out.limits.n)
        self.group = group
        try:
            await group.live(self._apply)
            await self._record_unapplied(group)
            if self.failures:
                raise self._group_of_failures()
        except BaseException as error:
            await self._wind_up(group, error)
            raise
        finally:
            self.ledger.dropped = self.elements.dropped
            self.ledger.left = self.elements.known
        self.elements.close()

    async def _wind_up(self, group: Group, error: BaseException) -> None:
        """Record and close what there is; what goes wrong in it must not hide ``error``."""
        try:
            try:
                await self._record_unapplied(group)
            finally:
                self.elements.close()
        except Exception as failure:
            logger.exception(
                "while fan-out %r of run %s ended", self.fan_out.name, self.parent.path.id
            )
            note(error, f"shoal: while the fan-out ended, {brief(failure)} was raised")

    # -- beginning ------------------------------------------------------------------------------

    def _narrowed(self) -> dict[str, object]:
        """Take from the parent's state what every child starts with."""
        data = self.parent.data
        base: dict[str, object] = {}
        for field in self.fan_out.child_reads:
            if field in data:
                base[field] = data[field]
            elif field in self.fan_out.graph.needs:
                msg = (
                    f"the children of fan-out {self.fan_out.name!r} read field {field!r}, which "
                    f"neither the state has (it has: {', '.join(sorted(data)) or 'none'}) nor the "
                    f"element brings, which they get as {self.fan_out.item!r}; "
                    f"name it with item=... or write the field in an earlier action"
                )
                raise MissingField(msg)
        return base

    def _over(self) -> object:
        over = self.fan_out.over
        if callable(over):
            return over(make_state(self.parent.data, self.fan_out.join.permit))
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
        values, done = fan_out.join.collections(
            run.data, keyed=fan_out.key is not None, visit=self.setting.visit
        )
        if values:
            operations = tuple(Set(field, value) for field, value in values.items())
            update = Update(run.number + 1, fan_out.name, operations)
            await run.commit((update,), {**run.data, **values})
        return done

    # -- applying -------------------------------------------------------------------------------

    async def _apply(self, batch: list[Run]) -> str | None:
        """Commit what ended; return why the rest is to be cancelled, if it is to be."""
        draft = Draft(self.fan_out.join, self.parent, self.elements)
        error = draft.add_all(batch)
        self.failures += draft.failures
        try:
            await self.parent.commit(
                draft.updates,
                draft.finished_data(),
                applied=draft.applied,
                unapplied=draft.unapplied,
            )
        except Exception:  # a failed save or hook; KeyboardInterrupt waits for the end of a commit
            if self.setting.execution.unsaved:
                self.unsaved = batch
            raise
        for child in batch:
            self.ledger.enter(child, raised=self.raises)
        self.elements.admit(draft.admitted)
        if error is not None:
            raise error
        if not self.failures:
            return None
        first = self.failures[0]
        return f"key {first.key!r} of fan-out {self.fan_out.name!r} failed: {brief(first.error)}"

    # -- ending ---------------------------------------------------------------------------------

    async def _record_unapplied(self, group: Group) -> None:
        """Record how those ended that were cancelled, or came too late to be applied."""
        late = sorted((*group.inbox, *self.unsaved), key=lambda child: child.position)
        group.inbox.clear()
        self.unsaved = []
        if not late:
            return
        for child in late:
            if self.setting.execution.unsaved:
                child.lose()
            elif child.status == "succeeded":
                child.miss()
            elif child.status == "failed" and self.raises:
                self.failures.append(child)
            self.ledger.enter(child, raised=self.raises)
        await self.parent.commit((), self.parent.data, unapplied=late)

    def _group_of_failures(self) -> ExceptionGroup[Exception]:
        failed = sorted(self.failures, key=lambda child: child.position)
        errors = [child.error for child in failed if isinstance(child.error, Exception)]
        self.failures.clear()
        count = "a child" if len(errors) == 1 else f"{len(errors)} children"
        return ExceptionGroup(f"{count} of fan-out {self.fan_out.name!r} failed", errors)


# Where failures end the step, `reduce` and `grow` are only ever given what is Done.


@overload
def fan_out(
    act: Act | Graph,
    *,
    over: Over,
    item: str = "item",
    key: str | Callable[[Any], object] | None = None,
    into: str | None = None,
    take: Take | None = None,
    errors_into: str | None = None,
    reduce: Callable[[State, Done], State] | None = None,
    grow: Callable[[State, Done], Iterable[Any]] | None = None,
    at_most: int | None = None,
    on_error: Literal["fail"] = "fail",
    limits: Limits | None = None,
    name: str | None = None,
    reads: Iterable[str] | None = None,
    writes: Iterable[str] = (),
) -> FanOut: ...


@overload
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
    on_error: Literal["collect"],
    limits: Limits | None = None,
    name: str | None = None,
    reads: Iterable[str] | None = None,
    writes: Iterable[str] = (),
) -> FanOut: ...


def fan_out(
    act: Act | Graph,
    *,
    over: Over,
    item: str = "item",
    key: str | Callable[[Any], object] | None = None,
    into: str | None = None,
    take: Any | None = None,
    errors_into: str | None = None,
    reduce: Any | None = None,
    grow: Any | None = None,
    at_most: int | None = None,
    on_error: OnError = "fail",
    limits: Limits | None = None,
    name: str | None = None,
    reads: Iterable[str] | None = None,
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
        on_error: With ``"fail"``, the first failure cancels the others, and the step raises an
            ``ExceptionGroup`` of all failures, in input order. With ``"collect"``, failures are
            data: for ``errors_into``, ``reduce`` and the result's ledger.
        limits: How many children are in flight; 100 by default.
        name: What the fan-out is called; by default the name in ``into``.
        reads: Fields that ``over`` (if a function, where it must be given), ``reduce`` and ``grow``
            read; those that the children and ``over`` (if a field) read are known.
        writes: Fields that ``reduce`` writes; ``into`` and ``errors_into`` are known.

    Raises:
        DefinitionError: The arguments don't fit together, and why.

    While it runs, the step raises ``BadKey`` for a repeated key, ``BadResult`` where ``reduce`` or
    ``grow`` returns what it must not, and whatever ``over``, ``key``, ``reduce`` or ``grow`` raise.

    Examples:
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
    checks.names(name=name, item=item, into=into, errors_into=errors_into)
    checks.over(over)
    checks.functions(
        key=None if isinstance(key, str) else key,
        take=None if isinstance(take, Sequence) else take,
        reduce=reduce,
        grow=grow,
    )
    if callable(over) and reads is None:
        checks.refuse(
            "over= is a function, so what it reads of the state can't be known; "
            "declare it: reads=[...], or reads=[] for nothing"
        )
    checks.results(into, errors_into, reduce, on_error)
    if item in graph.writes:
        checks.refuse(f"{graph.name!r} writes {item!r}, the field that holds its element")
    checks.counts(at_most, on_error, limits)
    writable = checks.writes(writes, reduce) | {f for f in (into, errors_into) if f is not None}
    over_field = {over} if isinstance(over, str) else set[str]()
    readable = field_names(reads or (), "reads") | (graph.reads - {item}) | over_field
    join = Join(
        name=label,
        permit=Permit(label, readable | writable, writable),
        into=into,
        take=checks.take(cast("Take | None", take), into, graph),
        errors_into=errors_into,
        reduce=reduce,
        grow=grow,
        on_error=on_error,
    )
    return FanOut(
        graph,
        over=over,
        item=item,
        key=key,
        join=join,
        at_most=at_most,
        limits=limits if limits is not None else Limits(),
        reads=readable,
    )


class _Checks(NamedTuple):
    """What is refused when a fan-out is built."""

    name: str

    def refuse(self, why: str) -> NoReturn:
        msg = f"fan_out {self.name!r}: {why}"
        raise DefinitionError(msg)

    def over(self, over: object) -> None:
        if isinstance(over, str) or inspect.isasyncgenfunction(over):
            return  # calling the latter waits for nothing: it gives an async iterable
        if not callable(over):
            self.refuse(
                f"over= takes the name of a field or a function of the state, not a "
                f"{type(over).__name__}; pass the elements to run() in a field, "
                f"or write over=lambda state: elements"
            )
        self.functions(over=over)

    def functions(self, **given: object) -> None:
        for parameter, value in given.items():
            if value is not None:
                require_plain(value, f"fan_out {self.name!r}: {parameter}=")

    def names(self, **given: object) -> None:
        for parameter, value in given.items():
            if value is not None and not isinstance(value, str):
                self.refuse(f"{parameter}= takes a name, not {value!r}")

    def results(
        self, into: str | None, errors_into: str | None, reduce: Reduce | None, on_error: OnError
    ) -> None:
        if errors_into is not None and on_error == "fail":
            self.refuse(
                "errors_into= collects failures, but with on_error='fail' the first one ends the "
                "step; give on_error='collect'"
            )
        if into is not None and reduce is not None:
            self.refuse("into= and reduce= both say what becomes of results; give one of them")
        if into is not None and into == errors_into:
            self.refuse(f"into= and errors_into= are both {into!r}; name two fields")

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

    def counts(self, at_most: object, on_error: object, limits: object) -> None:
        if limits is not None and not isinstance(limits, Limits):
            self.refuse(f"limits= takes Limits(n), not {limits!r}")
        if at_most is not None and (not _is_int(at_most) or at_most < 0):
            self.refuse(f"at_most= takes a number of children, not {at_most!r}")
        if on_error not in ("fail", "collect"):
            self.refuse(f"on_error= is 'fail' or 'collect', not {on_error!r}")

    def writes(self, writes: Iterable[str], reduce: Reduce | None) -> frozenset[str]:
        fields = field_names(writes, "writes")
        if reduce is not None and not fields:
            self.refuse("what reduce= writes can't be known; declare it: writes=[...]")
        return fields


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
