"""Which actions a graph may call, where, and in which limits: as far as known before a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shoal._errors.exceptions import DefinitionError, NotSendable
from shoal._limits.limits import Limits
from shoal.executors._named import Place, executor_named
from shoal.executors._port import Executor
from shoal.executors._threads import SHARED_THREADS

from .act import Act
from .action import FunctionAction
from .action_class import Action
from .graph import Graph
from .parallel import Parallel

Called = tuple[FunctionAction[..., Any], Executor | None]
"""An action, and where its function is called; None: on the event loop."""


def called_by(act: Act, inherited: Place | None) -> Iterator[Called]:
    """Yield the actions that an act may call, in it and in its children, and where.

    Args:
        act: The act.
        inherited: The nearest executor around it; None: there is none.
    """
    if isinstance(act, Action):
        act = act._function
    if isinstance(act, FunctionAction):
        yield act, act.executor_below(inherited)
    elif isinstance(act, Graph):
        for one in act.acts:
            yield from called_by(one, inherited)
    elif isinstance(act, Parallel):
        own = executor_named(act.executor, repr(act.name))
        for one in act.for_children:
            yield from called_by(one, inherited if own is None else own)


def limits_in(act: Act) -> Iterator[Limits]:
    """Yield the limits that stand on an act, and on what is in it and in its children."""
    if isinstance(act, Action | FunctionAction):
        if act.limits is not None:
            yield act.limits
    elif isinstance(act, Graph):
        for one in act.acts:
            yield from limits_in(one)
    elif isinstance(act, Parallel):
        yield act.limits
        for one in act.for_children:
            yield from limits_in(one)


def sent_by(subject: object, graph: Graph, inherited: Place | None) -> Sequence[Called]:
    """Return the actions that a graph may call in executors which may refuse them.

    Not those in the threads of the runtime, by far the most frequent ones, which take everything.

    Args:
        subject: Begins the message.
        graph: The graph.
        inherited: The nearest executor around it; None: there is none.

    Raises:
        DefinitionError: An action can't be executed on the event loop, which it inherits.
    """
    sent: list[Called] = []
    for action, executor in called_by(graph, inherited):
        if executor is None:
            why = action.unfit_for(None)
            if why:
                msg = f"{subject}: action {action.name!r}: {why}"
                raise DefinitionError(msg)
        elif executor is not SHARED_THREADS:
            sent.append((action, executor))
    return sent


def refuse_unsendable(
    subject: object, sent: Iterable[Called], inputs: Mapping[str, object]
) -> None:
    """Refuse to start a run with actions that can't be called where they would be.

    Args:
        subject: Begins the message.
        sent: The actions of its graph, as ``sent_by`` has returned them.
        inputs: The inputs of the run.

    Raises:
        NotSendable: A function, or an input that it takes, can't be sent to its executor.
    """
    for action, executor in sent:
        assert executor is not None, "what is called on the loop is not sent"
        given = {**inputs, **action.bound_inputs}
        taken = {name: given[name] for name in action.input_names if name in given}
        why = executor.refuse(action.job, taken)
        if why:
            where = f"{subject}: action {action.name!r}"
            raise NotSendable(f"{where} can't be called in {executor!r}: {why}")
