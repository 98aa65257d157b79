"""Checks of the arguments that all parallel acts have in common, where they are defined."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import cast

from shoal._errors.arguments import is_number
from shoal._errors.exceptions import DefinitionError, UndeclaredRead, brief
from shoal._events.hooks import Hook, Hooks
from shoal._limits.limits import Limits, mended
from shoal._state.functions import require_plain
from shoal.executors._named import executor_named
from shoal.stores._protocol import check_store

from .graph import Graph
from .policy import INHERIT, Each, Hedge, Tolerate, check_timeout
from .until import EndCondition


def check_policies(
    subject: str,
    *,
    on_error: object,
    at_most: object,
    limits: object,
    store: object = INHERIT,
    hooks: object = INHERIT,
    each: object = None,
    timeout: object = None,
    title: object = None,
    executor: object = None,
    ahead: object = None,
) -> None:
    """Check the policies of a parallel act.

    Raises:
        DefinitionError: One is invalid; the message names ``subject``, the act.
    """
    check_cascade(subject, store, hooks)
    if not isinstance(limits, Limits):
        msg = f"{subject}: limits= takes Limits(n), not {limits!r}{mended(limits)}"
        raise DefinitionError(msg)
    if at_most is not None and (type(at_most) is not int or at_most < 0):
        msg = f"{subject}: at_most= takes a number of children, not {at_most!r}"
        raise DefinitionError(msg)
    if on_error not in ("fail", "collect", "ignore") and not isinstance(on_error, Tolerate):
        msg = (
            f"{subject}: on_error= is 'fail', 'collect', 'ignore' or Tolerate(...), "
            f"not {on_error!r}"
        )
        raise DefinitionError(msg)
    if each is not None and not isinstance(each, Each):
        msg = f"{subject}: each= takes Each(timeout=..., retry=...), not {each!r}"
        raise DefinitionError(msg)
    check_timeout(f"{subject}: timeout=", timeout)
    check_title(f"{subject}: title=", title)
    executor_named(executor, subject)
    check_ahead(f"{subject}: ahead=", ahead)


def check_ahead(what: str, ahead: object) -> None:
    """Check a user's ``ahead=``.

    Raises:
        DefinitionError: It is no number of elements; the message begins with ``what``.
    """
    if ahead is not None and (type(ahead) is not int or ahead < 0):
        msg = (
            f"{what} takes a number of elements, at least 0, that are pulled before they can "
            f"start, not {brief(ahead)}"
        )
        raise DefinitionError(msg)


def check_title(what: str, title: object) -> None:
    """Check a user's ``title=``.

    Raises:
        DefinitionError: It is neither a text nor a plain function; the message begins with
            ``what``.
    """
    if title is None or isinstance(title, str):
        return
    if not callable(title):
        msg = (
            f"{what} takes a text, or a plain function of the state that a child starts with, "
            f"not {brief(title)}"
        )
        raise DefinitionError(msg)
    require_plain(title, what)


def check_stagger(subject: str, stagger: object, until: EndCondition) -> None:
    """Check a user's ``stagger=``.

    Raises:
        DefinitionError: It is invalid, or doesn't go with ``until``; the message names ``subject``.
    """
    if isinstance(stagger, Hedge):
        if not until.is_race:
            msg = (
                f"{subject}: stagger=Hedge(...) starts more children than are needed, but here all "
                f"are needed: give until=first(); or, for a second copy of each late child, "
                f"each=Each(hedge=Hedge(...))"
            )
            raise DefinitionError(msg)
    elif stagger is not None and not (is_number(stagger) and stagger >= 0):
        msg = (
            f"{subject}: stagger= takes seconds from one start to the next, math.inf for one at a "
            f"time, or Hedge(...), not {brief(stagger)}"
        )
        raise DefinitionError(msg)


def check_cascade(subject: str, store: object, hooks: object) -> None:
    """Check the ``store=`` and ``hooks=`` that replace those of the parent.

    Raises:
        DefinitionError: One is invalid; the message names ``subject``.
    """
    if store is not None and store is not INHERIT:
        check_store(store, f"{subject}: store=")
    if hooks is not INHERIT:
        Hooks(cast("Iterable[Hook]", hooks))


def check_reads(
    subject: str,
    graph: Graph,
    declared: Collection[str],
    given: Collection[str],
    data: Collection[str],
) -> None:
    """Check that a step declares all fields that a graph chosen at run time reads.

    The declared fields are all that an enclosing graph knows of, and provides. A field that the
    graph doesn't need, and that is missing, need not be declared.

    Args:
        subject: The step, for messages.
        graph: The graph that was chosen.
        declared: The fields that the step declares to read.
        given: Fields that the step itself gives to the children.
        data: The fields of the parent's state.

    Raises:
        UndeclaredRead: The graph reads a field of the parent that is not in ``declared``.
    """
    unread = [
        field
        for field in sorted(graph.reads - set(declared) - set(given))
        if field in data or field in graph.needed_by
    ]
    if unread:
        msg = (
            f"{subject}: {graph.name!r} reads {', '.join(unread)}, which {subject} does not "
            f"declare; add it to reads=[...]"
        )
        raise UndeclaredRead(msg)
