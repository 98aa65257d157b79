"""What an action of Burr's declares, and refusing what is none."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, NamedTuple, NoReturn, cast, final

from burr.core import Action, Application, ApplicationBuilder, Condition, Graph, GraphBuilder
from burr.core.action import DEFAULT_SCHEMA, FunctionBasedAction
from burr.core.parallelism import RunnableGraph, TaskBasedParallelAction

from shoal._errors.exceptions import DefinitionError, MissingInput, brief
from shoal._graph.act import Act
from shoal._graph.action import Parameters, field_names

INJECTED = ("__context", "__tracer")
"""The inputs that Burr gives to actions itself."""


@final
class Declared(NamedTuple):
    """An action of Burr's under the name that it has as an act."""

    action: Action
    name: str
    reads: frozenset[str]
    writes: frozenset[str]
    inputs: Mapping[str, bool]
    """The inputs that it takes, by name, and whether it needs them."""
    injected: frozenset[str]
    """The inputs among ``INJECTED`` that it takes."""

    def parameters(self, *, takes_context: bool, asks_late: bool = False) -> Parameters:
        """Return what the parameters of a function that calls the action are filled with.

        Args:
            takes_context: Whether the function takes the context, whatever the action does.
            asks_late: Whether inputs are asked for when the action begins, not when the run does.
        """
        taken = takes_context or bool(self.injected)
        if "state" in self.inputs or (taken and "context" in self.inputs):
            name = "state" if "state" in self.inputs else "context"
            why = "" if name == "state" else ", for what it streams, traces or starts"
            msg = (
                f"action {self.name!r}: it takes an input {name!r}, and shoal gives it its own "
                f"{name} under that name{why}; rename the input"
            )
            raise DefinitionError(msg)
        inputs = dict.fromkeys(self.inputs, False) if asks_late else self.inputs
        return Parameters(inputs=inputs, takes_state=True, takes_context=taken, are_apart=True)

    def refuse_missing(self, given: Collection[str]) -> None:
        """Check the inputs that the action begins with.

        Raises:
            MissingInput: It needs one that isn't given.
        """
        missing = [name for name, need in self.inputs.items() if need and name not in given]
        if missing:
            msg = (
                f"action {self.name!r} lacks the input {', '.join(map(repr, missing))}; give it to "
                f"run(id=..., inputs={{{missing[0]!r}: ...}}), which goes on here if the run is "
                f"saved, or halt before: run(..., halt_before=[{self.name!r}])"
            )
            raise MissingInput(msg)


def declared(found: object, name: str | None, where: str) -> Declared:
    """Return what ``found`` declares: an action of Burr's, or a function that it decorates.

    Args:
        found: What a user has given.
        name: The name of the act; None: that of the action.
        where: The function of ours that it was given to, for messages.

    Raises:
        DefinitionError: It is no action of Burr's, or declares something that can't be.
    """
    if name is not None and (not isinstance(name, str) or not name):
        msg = f"{where}(name=...) takes a name, not {name!r}"
        raise DefinitionError(msg)
    action = _action_of(found, where)
    known = name or action.name or type(action).__name__
    inputs = action.inputs
    if isinstance(inputs, str) or not isinstance(inputs, list | tuple):
        msg = f"action {known!r}: inputs is a list of names, not {inputs!r}"
        raise DefinitionError(msg)
    required, optional = action.optional_and_required_inputs
    own = frozenset(one for one in (*required, *optional) if one in INJECTED)
    for one in sorted({*required, *optional} - own):
        if one.startswith("__"):
            msg = (
                f"action {known!r}: it takes {one!r}, and names with two underscores are those "
                f"that Burr gives itself: {', '.join(INJECTED)}; rename the input"
            )
            raise DefinitionError(msg)
    writes = field_names(action.writes, "writes")
    is_typed = cast("Any", action).schema is not DEFAULT_SCHEMA
    return Declared(
        action,
        known,
        # A model has what the action writes as well, with its value from before.
        field_names(action.reads, "reads") | (writes if is_typed else frozenset()),
        writes,
        {
            **dict.fromkeys(sorted(required - own), True),
            **dict.fromkeys(sorted(optional - own), False),
        },
        own,
    )


def _action_of(found: object, where: str) -> Action:
    if isinstance(found, Action):
        return found
    decorated = getattr(found, FunctionBasedAction.ACTION_FUNCTION, None)
    if decorated is not None and not isinstance(found, type):
        named = cast("Action", decorated)
        return named.with_name(getattr(found, "__name__", "action"))
    return refuse(found, where)


def refuse(found: object, where: str) -> NoReturn:
    """Refuse what is no action of Burr's, with what to write.

    Raises:
        DefinitionError: Always.
    """
    shown: object = found
    name: object = getattr(found, "__name__", type(found).__name__)
    if isinstance(found, Act):
        hint = "it is an act of shoal's already: use it as it is"
    elif isinstance(found, ApplicationBuilder):
        hint = "it is a builder: build the application, and give it to shoal.burr.graph(...)"
    elif isinstance(found, Graph | GraphBuilder | Application | RunnableGraph):
        hint = "it is a whole graph: shoal.burr.graph(...)"
    elif isinstance(found, Condition):
        hint = "it is a condition, which shoal.burr.graph(...) takes over with its graph"
    elif isinstance(found, type) and issubclass(found, Action):
        hint = f"it is a class: give an instance, {where}({name}())"
    elif isinstance(found, Coroutine):
        cast("Coroutine[Any, Any, Any]", found).close()  # else it warns that nothing awaited it
        hint = "it is the result of calling a coroutine function: give the function, without ()"
    elif callable(shown):
        kind = "streaming_action" if _is_generator(shown) else "action"
        hint = f"decorate it with Burr's @{kind}(reads=[...], writes=[...])"
    else:
        hint = "give a function with Burr's @action, or an instance of one of its action classes"
    msg = f"{where} takes actions of Burr's; {brief(shown)} is none: {hint}"
    raise DefinitionError(msg)


def _is_generator(found: object) -> bool:
    return inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found)


def is_parallel(action: Action) -> bool:
    """Return whether an action of Burr's makes tasks, which are children here."""
    return isinstance(action, TaskBasedParallelAction)
