"""Races: fan-outs over several acts, decided by the first good result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shoal._errors.exceptions import DefinitionError
from shoal._errors.misplaced import says_where
from shoal._events.events import Done
from shoal._events.hooks import Hook
from shoal._limits.limits import DEFAULT_LIMITS, Limits
from shoal._state.functions import require_plain
from shoal._state.state import State
from shoal.executors._named import ExecutorName
from shoal.executors._port import Executor
from shoal.stores._protocol import Store

from .act import Act
from .acts import as_graphs, check_wanted
from .checks import check_policies, check_stagger
from .fan_out import FanOut, fan_out
from .parallel import Take
from .policy import INHERIT, Each, Inherit, Stagger, Title
from .until import Until, as_condition, first


@says_where
def race(
    *acts: Act | Callable[[State], Sequence[Act]],
    into: str | None = None,
    take: Take | None = None,
    accept: Callable[[Any], object] | None = None,
    until: Until | None = None,
    reduce: Callable[[State, Done], State] | None = None,
    stagger: Stagger | None = None,
    limits: Limits | None = None,
    each: Each | None = None,
    timeout: float | None = None,
    name: str | None = None,
    reads: Iterable[str] | None = None,
    writes: Iterable[str] = (),
    store: Store | Inherit | None = INHERIT,
    hooks: Sequence[Hook] | Inherit = INHERIT,
    title: Title | None = None,
    executor: Executor | ExecutorName | None = None,
) -> FanOut:
    """Make an act that runs several acts at once and takes the first good result.

    It is a ``fan_out`` over a list of acts with ``until=first(accept=accept)``. Each act is a child
    run of its own. The first result that is accepted is applied to the state, saved, and published
    to hooks. Only then are the other children cancelled. The step ends when they have ended, their
    ``finally`` blocks included; an ``await`` in a ``finally`` is cancelled again at once, unless it
    is inside ``shielded``. An act that fails or is refused only leaves the race. If none is left,
    the step raises ``NobodyAccepted``. ``result.outcomes(name)`` has the outcomes of the losers.

    Args:
        acts: The contestants: actions, graphs, other races; or one plain function of the state that
            returns a list of them, called when the step begins.
        into: The field for the winning value itself.
        take: The part of a child's final state that is its value: a field, a list of fields (for a
            dict of them), or a plain function of that state. By default the field with the name in
            ``into``, or the only field that the act writes.
        accept: A plain function that returns whether a value counts. If it raises, the value is
            refused.
        until: The condition that decides instead: ``first(n)``, ``quorum(n)``, or a function; see
            ``fan_out``.
        reduce: Instead of ``into``: a plain function ``(state, outcome) -> state``, called for each
            accepted result.
        stagger: Seconds from the start of one act to the start of the next, in the given order. If
            one fails or is refused, the next starts at once. ``math.inf``: an ordered fallback, one
            at a time. ``Hedge(...)`` learns the delay. By default all start at once.
        limits: How many are in flight; by default all.
        each: The timeout, retries and circuit breaker of each child.
        timeout: Seconds that the whole step may take until it is decided, waits included. Then all
            children are cancelled, and the step raises ``StepTimeout``.
        name: The name of the race; by default the name in ``into``.
        reads: The fields read by ``reduce``, and by ``acts`` if it is a function, in which case it
            must be given.
        writes: The fields that ``reduce`` writes.
        store: The store of the children; see ``fan_out``.
        hooks: The hooks that receive the children's events; see ``fan_out``.
        title: What watchers call the race, or its contestants; see ``fan_out``.
        executor: Where the actions of the contestants are called; see ``fan_out``.

    Raises:
        DefinitionError: There is no contestant, or the arguments don't fit together; the message
            says why.

    Examples:
        >>> import anyio
        >>> @action(reads=["question"], writes=["answer"])
        ... async def ask(question: str, model: str, seconds: float) -> str:
        ...     await anyio.sleep(seconds)
        ...     return f"{model}: {question}!"
        >>> slow = ask.bind(name="slow", model="large-7", seconds=3600.0)
        >>> quick = ask.bind(name="quick", model="small-1", seconds=0.01)
        >>> result = Application(race(slow, quick, into="answer")).run_sync({"question": "why"})
        >>> result.state["answer"]
        'small-1: why!'
        >>> [(outcome.act, outcome.reason) for outcome in result.outcomes("answer")]
        [('slow', "'quick' decided fan-out 'answer'")]
    """
    subject = f"race {name or into or 'race'!r}"
    if not acts:
        msg = f"{subject}: there are no contestants; give it acts: race(one, another, ...)"
        raise DefinitionError(msg)
    if accept is not None and until is not None:
        msg = f"{subject}: until= decides the race; give accept= to it: until=first(n, accept=...)"
        raise DefinitionError(msg)
    for act in acts:
        if isinstance(act, Sequence):
            msg = f"{subject} takes acts one by one, and not a list of them: race(*acts)"
            raise DefinitionError(msg)
    chosen = len(acts) == 1 and not isinstance(acts[0], Act)
    # Checked here, so that messages don't speak of a fan_out.
    if accept is not None:
        require_plain(accept, f"{subject}: accept=")
    decides = first(accept=accept) if until is None else as_condition(subject, until)
    check_stagger(subject, stagger, decides)
    check_policies(
        subject,
        on_error="fail",
        at_most=None,
        limits=DEFAULT_LIMITS if limits is None else limits,
        store=store,
        hooks=hooks,
        each=each,
        timeout=timeout,
        title=title,
        executor=executor,
    )
    if not chosen:
        as_graphs(acts, subject)
        check_wanted(subject, decides, len(acts))
    return fan_out(
        acts[0] if chosen else acts,  # pyright: ignore[reportArgumentType] # fan_out refuses what is none
        into=into,
        take=take,
        reduce=reduce,
        until=decides,
        stagger=stagger,
        limits=limits,
        each=each,
        timeout=timeout,
        name=name,
        reads=reads,
        writes=writes,
        store=store,
        hooks=hooks,
        title=title,
        executor=executor,
    )
