"""Refusing what is no policy of a parallel step, where it is defined. Imports runs' hooks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import cast

from shoal._errors.arguments import is_number
from shoal._errors.exceptions import DefinitionError, UndeclaredRead, brief
from shoal._events.hooks import Hook, Hooks
from shoal._limits.limits import Limits
from shoal.stores._protocol import check_store

from .graph import Graph
from .policy import INHERIT, Each, Hedge, Tolerate, check_timeout
from .until import EndCondition


def check_policies(
    who: str,
    *,
    on_error: object,
    at_most: object,
    limits: object,
    store: object = INHERIT,
    hooks: object = INHERIT,
    each: object = None,
    timeout: object = None,
) -> None:
    """Refuse what is no policy of a parallel step.

    Raises:
        DefinitionError: Naming ``who`` was given it.
    """
    check_cascade(who, store, hooks)
    if not isinstance(limits, Limits):
        msg = f"{who}: limits= takes Limits(n), not {limits!r}"
        raise DefinitionError(msg)
    if at_most is not None and (type(at_most) is not int or at_most < 0):
        msg = f"{who}: at_most= takes a number of children, not {at_most!r}"
        raise DefinitionError(msg)
    if on_error not in ("fail", "collect", "ignore") and not isinstance(on_error, Tolerate):
        msg = f"{who}: on_error= is 'fail', 'collect', 'ignore' or Tolerate(...), not {on_error!r}"
        raise DefinitionError(msg)
    if each is not None and not isinstance(each, Each):
        msg = f"{who}: each= takes Each(timeout=..., retry=...), not {each!r}"
        raise DefinitionError(msg)
    check_timeout(f"{who}: timeout=", timeout)


def check_stagger(who: str, stagger: object, until: EndCondition) -> None:
    """Refuse what doesn't say when children start.

    Raises:
        DefinitionError: Naming ``who`` was given it.
    """
    if isinstance(stagger, Hedge):
        if not until.is_race:
            msg = (
                f"{who}: stagger=Hedge(...) starts more children than are needed, and here all "
                f"are: give until=first(), or, to hedge each child, run over the elements a race "
                f"of its act against itself: race(act, act.bind(name='again'), stagger=Hedge(...))"
            )
            raise DefinitionError(msg)
    elif stagger is not None and not (is_number(stagger) and stagger >= 0):
        msg = (
            f"{who}: stagger= takes seconds from one start to the next, math.inf for one at a "
            f"time, or Hedge(...), not {brief(stagger)}"
        )
        raise DefinitionError(msg)


def check_cascade(who: str, store: object, hooks: object) -> None:
    """Refuse what can't take the place of the parent's store or hooks.

    Raises:
        DefinitionError: Naming ``who`` was given it.
    """
    if store is not None and store is not INHERIT:
        check_store(store, f"{who}: store=")
    if hooks is not INHERIT:
        Hooks(cast("Iterable[Hook]", hooks))


def check_reads(
    who: str, graph: Graph, declared: Collection[str], given: Collection[str], data: Collection[str]
) -> None:
    """Refuse a graph that was chosen while running and reads what its step doesn't declare.

    What a step declares is all that a graph around it knows of, and brings. A field that the graph
    can do without, and that isn't there, needn't be declared.

    Raises:
        UndeclaredRead: It reads a field of the parent's that is not in ``declared``.
    """
    unread = [
        field
        for field in sorted(graph.reads - set(declared) - set(given))
        if field in data or field in graph.needed_by
    ]
    if unread:
        msg = (
            f"{who}: {graph.name!r} reads {', '.join(unread)}, which {who} does not declare; "
            f"add it to reads=[...]"
        )
        raise UndeclaredRead(msg)
