"""Acts: the steps that a run can execute, as graphs and runs see them.

Invariants:
- An act is immutable; ``bind`` returns a copy.
- A bound input can't be given once more.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeVar, final

from shoal._errors.completion import hides
from shoal._errors.exceptions import DefinitionError, did_you_mean
from shoal._limits.retry import Retry
from shoal._state.schema import Schema
from shoal._state.state import Change

from .sketch import Sketch


class Performer(Protocol):
    """The run that executes an act, as far as acts know it."""

    # `Any` stands for ``FunctionAction``, which is above this module.
    def call(self, action: Any) -> Awaitable[Change]:
        """Bind the parameters of the function, call it, and check its return value."""
        ...

    def enter(self, graph: Act) -> Awaitable[Change]:
        """Run a graph as a child run, and return the changes of its state."""
        ...

    def fan_out(self, parallel: Act) -> Awaitable[Change]:
        """Run the children of a parallel act; return the change that completes the step."""
        ...


@final
class Input(NamedTuple):
    """An input that an act takes."""

    by: str
    """The name of the action that takes it."""
    required: bool
    """Whether that action needs it: the parameter has no default."""
    is_apart: bool = False
    """Whether it has nothing to do with a field of that name. Parameters of our functions are told
    apart by their names, so that a parameter with the name of a field is meant to get the field."""


@hides(
    "bound continues exposing for_children is_simple is_simple_within_limits misfit needed_by "
    "needs perform sketch sure_writes takes_more"
)
class Act(ABC):
    """A step that a run can execute: an action, a fan-out, a graph."""

    name: str
    reads: Collection[str] = ()
    """Fields of the state that it may read."""
    writes: Collection[str] = ()
    """Fields that it may change."""
    sure_writes: Collection[str] = ()
    """The fields in ``writes`` that are certain to be in the state after the act."""
    continues: Collection[str] = ()
    """Fields that it collects results into, and whose present results it may keep."""
    version: str = "1"
    """Part of the identity of its work: results recorded under another version don't count."""
    retry: Retry | None = None
    """Which of its failures are tried again, and how often."""
    is_simple: bool = False
    """Whether it is a function action that only reads fields and is awaited; see there."""
    is_simple_within_limits: bool = False
    """Whether it is, or would be if it had no limits."""

    @property
    @abstractmethod
    def takes(self) -> Mapping[str, Input]:
        """The inputs that it takes, by name; those that are bound are not among them."""

    @property
    def bound(self) -> Collection[str]:
        """The inputs that are bound, so that they can't be given."""
        return ()

    @property
    def needed_by(self) -> Mapping[str, str]:
        """The fields that it needs, each with a description of the act that reads it."""
        return dict.fromkeys(self.reads, f"act {self.name!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The fields that it needs: those that it reads and for which it has no default."""
        return frozenset(self.needed_by)

    @property
    def takes_more(self) -> bool:
        """Whether it may take inputs that are only known while it runs."""
        return False

    @property
    def for_children(self) -> Sequence[Act]:
        """The acts of its children, as far as they are known before it runs."""
        return ()

    def misfit(self, schema: Schema[Any]) -> str:
        """Return why it can't work on a state with this model, and what to do; "" if it can.

        This compares declarations. Values are checked when they are written.
        """
        for verb, fields in (("reads", self.reads), ("writes", self.writes)):
            for field in sorted(set(fields) - schema.fields):
                return f"it {verb} field {field!r}, which {schema.why_undeclared(field)}"
        return ""

    def exposing(self, secret: frozenset[str]) -> str:
        """Return how it would expose secret fields to the store or to hooks; "" if it wouldn't.

        Args:
            secret: The names of the secret fields.
        """
        for field in sorted(secret.intersection(self.writes)):
            return (
                f"{self.name!r} writes {field!r}, and written fields are saved and published: have "
                f"it write another field, or give it an object as an input to keep the secret in"
            )
        return ""

    def sketch(self) -> Sketch:
        """Return what drawings show of it."""
        return Sketch()

    @abstractmethod
    def perform(self, run: Performer) -> Awaitable[Change]:
        """Execute one step of ``run``.

        Returns the change that completes the step. A fan-out commits the changes before that
        itself. If the act raises, the step fails.
        """

    def bind(self, *, name: str | None = None, **inputs: object) -> Self:
        """Return a copy of the act with another name, with some of its inputs given, or both.

        A bound input is settled: the act takes it from nowhere else. To give it to a run, to an
        application, or to a further ``bind`` is refused, unless another act takes an input of that
        name. A graph or a fan-out binds the inputs of the acts in it that have not bound them
        themselves.

        Args:
            name: The name of the copy; by default the same.
            inputs: Inputs, by name.

        Raises:
            DefinitionError: The act takes no input of that name, it is bound already, or ``name``
                is no string.

        Examples:
            >>> @action(reads=["question"], writes=["answer"])
            ... async def ask(question: str, model: str) -> str:
            ...     return f"{model}: {question}!"
            >>> small = ask.bind(name="small", model="tiny-1")
            >>> Application(small).run_sync({"question": "why"}).state["answer"]
            'tiny-1: why!'
        """
        check_binding(self, name, inputs)
        bound = copy.copy(self)
        # `copy` of a frozen dataclass with slots copies its fields alone, and a user's subclass may
        # be one: other attributes are in `__dict__`.
        vars(bound).update(vars(self))
        bound._bind(name if name is not None else self.name, inputs)
        return bound

    @abstractmethod
    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        """Set ``name`` and bind ``inputs`` on a fresh copy."""


def check_binding(act: Act, name: object, given: Collection[str]) -> None:
    """Check the arguments of ``bind``.

    Raises:
        DefinitionError: The act takes no such input, it is bound, or ``name`` is no string.
    """
    if name is not None and (not isinstance(name, str) or not name):
        msg = f"{act.name!r}: bind(name=...) takes a name, not {name!r}"
        raise DefinitionError(msg)
    known = act.takes
    for one in given:
        if one in known:
            continue
        if one in act.bound:
            msg = f"{act.name!r} has bound its input {one!r} already: bind the act it was made of"
            raise DefinitionError(msg)
        if not act.takes_more:
            why = (
                "; it is a field in reads=, and fields come from the state: give it to run(), or, "
                "to bind it, take it out of reads="
                if one in act.reads
                else did_you_mean(one, known)
            )
            msg = (
                f"{act.name!r} takes no input {one!r} that could be bound "
                f"(it takes: {', '.join(sorted(known)) or 'none'}){why}"
            )
            raise DefinitionError(msg)


def merged_inputs(acts: Iterable[Act]) -> Mapping[str, Input]:
    """Collect the inputs of several acts, each for an act that requires it if there is one."""
    takes: dict[str, Input] = {}
    for act in acts:
        for name, need in act.takes.items():
            known = takes.get(name)
            if known is None:
                takes[name] = need
                continue
            first = need if need.required and not known.required else known
            takes[name] = first._replace(is_apart=known.is_apart and need.is_apart)
    return takes


def versions(acts: Iterable[Act]) -> str:
    """Return the names and versions of the acts, as the version of an act that contains them."""
    return ",".join(sorted(f"{act.name}={act.version}" for act in acts))


A = TypeVar("A", bound=Act)


def bind_where_taken(act: A, inputs: Mapping[str, object]) -> A:
    """Return ``act`` with those of ``inputs`` bound that it takes."""
    takes = act.takes
    taken = {
        name: value
        for name, value in inputs.items()
        if name in takes or (act.takes_more and name not in act.bound)
    }
    return act.bind(name=None, **taken) if taken else act
