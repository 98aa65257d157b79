"""What an action is told about where it runs: its parameter ``context``.

Imports everything above.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any, final

import anyio

from shoal._engine.publish import refuse_secrets
from shoal._engine.questions import ask
from shoal._engine.run import Run
from shoal._engine.streaming import Items
from shoal._errors.exceptions import BadResult, BadUse, DefinitionError
from shoal._events.events import SpanStarted
from shoal._events.hooks import Hook
from shoal._events.identity import Key, RunPath
from shoal._graph.action import FunctionAction, Result
from shoal._graph.checks import check_cascade
from shoal._graph.policy import INHERIT, Each, Inherit, check_timeout
from shoal._limits.limits import DEFAULT_LIMITS, Limits
from shoal._limits.permits import AttemptPermit
from shoal.stores._protocol import Store

from .action_group import ChildGroup


@final
class Context:
    """Where an action runs: what the parameter ``context`` gets. Valid as long as the action runs.

    When the action is cancelled, so is each of its ``await``s, also in ``finally`` blocks: cleanup
    that awaits stands in ``async with shielded(seconds):``.

    Examples:
        >>> @action(reads=["n"], writes=["key"])
        ... async def who(n: int, context: Context) -> str:
        ...     return f"{context.step} {context.key!r} at depth {context.depth}"
        >>> many = fan_out(who, over="ns", item="n", key=str, into="keys")
        >>> Application(many).run_sync({"ns": [7]}).state["keys"]
        {'7': "who '7' at depth 1"}
    """

    def __init__(
        self, run: Run, action: FunctionAction[..., Any], seat: AttemptPermit | None, items: Items
    ) -> None:
        """Describe one attempt of ``action`` by ``run``."""
        self._run = run
        self._action = action
        self._seat = seat
        self._items = items
        self._loop_thread = threading.get_ident() if action.in_thread else None
        self._names: set[str] = set()  # of fan-outs
        self._thread = threading.get_ident()
        # Asked here, for a thread has no scopes to ask.
        self._fixed_deadline = anyio.current_effective_deadline() if action.in_thread else None

    @property
    def path(self) -> RunPath:
        """Where the run stands in its family."""
        return self._run.path

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._run.path.id

    @property
    def parent(self) -> RunPath | None:
        """The run that started this one; None for a root run."""
        return self._run.path.parent

    @property
    def key(self) -> Key:
        """The run's key within its fan-out; empty for a root run."""
        return self._run.path.key

    @property
    def depth(self) -> int:
        """How deep the run is nested: 0 for a root run."""
        return self._run.path.depth

    @property
    def step(self) -> str:
        """The name of the action."""
        return self._action.name

    @property
    def attempt(self) -> int:
        """Which try of the step this is, counted from 1."""
        return self._items.attempt

    @property
    def deadline(self) -> float:
        """When the action will be cancelled, on the clock of ``anyio.current_time()``.

        In seconds; ``math.inf`` if no deadline is known. The nearest one counts: of this attempt's
        timeout, the child's, the fan-outs' around it, of the scopes around ``run`` and around the
        ``context.fan_out`` that started the run.
        """
        deadline = self._fixed_deadline
        if deadline is None:
            deadline = anyio.current_effective_deadline()
        return min(deadline, self._run.config.deadline)

    def charge(self, actual: float) -> None:
        """Correct what this attempt is charged, wherever ``Limits(cost=...)`` has said it before.

        Tokens that an answer has used, say, instead of those that were expected. If they are more,
        the difference comes off what may go next; if fewer, it may go at once, as far as it would
        not have been free again by now anyway. In limits without ``cost=`` it has no effect. May be
        called again: the last one counts.

        Args:
            actual: Units of the rate, at least 0.

        Examples:
            >>> limits = Limits(rate=Rate(90_000, per=60), cost=lambda state: 2_000)
            >>> @action(reads=["question"], writes=["answer"], limits=limits)
            ... async def ask(question: str, context: Context) -> str:
            ...     context.charge(1_234)
            ...     return "42"
            >>> Application(ask).run_sync({"question": "?"}).state["answer"]
            '42'
        """
        if (
            not isinstance(actual, int | float)
            or isinstance(actual, bool)
            or not 0 <= actual < math.inf
        ):
            msg = f"context.charge(actual) takes a number of units, at least 0, not {actual!r}"
            raise BadUse(msg)
        permits = self._run.slot_owner.permits
        stake = None if permits is None else permits.stake
        self._run.config.services.admission.charge(self._seat, stake, actual)

    @contextmanager
    def span(self, name: str, **attributes: object) -> Generator[None]:
        """Mark a part of the action: hooks that have ``around_span`` are entered around the block.

        Args:
            name: What the part is called.
            attributes: What is to be known about it.
        """
        hooks = self._run.config.hooks
        if not hooks.around_span:
            yield
            return
        refuse_secrets(self._run, attributes, f"span {name!r} of action {self._action.name!r}")
        event = SpanStarted(
            path=self._run.path, step=self._action.name, name=name, attributes=attributes
        )
        entered = hooks.enter_around(hooks.around_span, event)
        try:
            yield
        except BaseException as error:
            self._run.config.secrets.hide(error)
            failure = entered.leave(error)
            if failure is not None and isinstance(error, Exception):
                raise failure from error
            raise
        failure = entered.leave(None)
        if failure is not None:
            raise failure

    def emit(self, item: object) -> Coroutine[Any, Any, None]:
        """Give a partial item: ``await context.emit(item)``.

        Hooks and opened runs hear of it at once, as ``Item`` events. The action goes on when all of
        them have let it: so a slow reader slows it down. Items are told in order, also where
        several tasks of the action give some, and are not saved: what counts is what it returns.

        An action that is a generator may simply ``yield item``. A plain function, in its worker
        thread, calls ``anyio.from_thread.run(context.emit, item)``; where the action has been
        cancelled by then, that raises ``RunCancelled``.

        Cancellation arrives before the item is told, or else after everybody has heard of it.

        Raises:
            HookFailed: A guarding hook raised, which fails the run.
            BadUse: The action has ended, or is a plain function and calls this itself.

        Examples:
            >>> from shoal.events import Item
            >>> @action(reads=["n"], writes=["total"])
            ... async def add_up(n: int, context: Context) -> int:
            ...     total = 0
            ...     for number in range(n):
            ...         total += number
            ...         await context.emit(total)
            ...     return total
            >>> hook = RecordingHook()
            >>> Application(add_up, hooks=[hook]).run_sync({"n": 4}).state["total"]
            6
            >>> [event.item for event in hook.of(Item)]
            [0, 1, 3, 6]
        """
        action = self._action
        self._refuse_plain("that an item is told", "emit, item")
        if isinstance(item, Result):
            msg = (
                f"action {action.name!r} emits a Result, which is no partial item: it is what a "
                f"generator yields last; here, return its value"
            )
            raise BadResult(msg)
        return self._give(item)

    def _refuse_plain(self, what: str, call: str) -> None:
        """Refuse to be called by what can't await: a plain function, on the loop or in a thread."""
        action = self._action
        on_loop = action.in_thread and threading.get_ident() == self._loop_thread
        if not (action.is_async or action.is_streaming or on_loop):
            msg = (
                f"action {action.name!r} is a plain function, which can't await {what}: make it a "
                f"coroutine function, or have it run in a thread and call "
                f"anyio.from_thread.run(context.{call})"
            )
            raise BadUse(msg)

    async def _give(self, item: object) -> None:
        pending = self._items.give(item)
        if pending is not None:
            await pending

    def ask(self, name: str, question: object = None) -> Coroutine[Any, Any, Any]:
        """Ask a person, and return the answer: ``answer = await context.ask(name, question)``.

        Where nobody has answered yet, the question is saved and the run is halted here:
        ``Halting`` is raised, and however the attempt ends, nothing of it counts. Siblings go on.
        When nothing else is left to be done, the root run ends as ``"halted"``, and
        ``result.questions`` has what was asked. ``run(id=..., answers={(run_id, name): value})``
        answers: then the attempt runs again **from its start**, and gets the answer here. So what
        an action does before it asks, it does again; put what must not be done twice into an
        action of its own.

        An answer belongs to this execution of the step: every attempt gets it again, after a retry
        or a crash, too; a loop that comes back to the step asks anew. Where a root run's
        own action has failed with an answer, another one may be given. Several questions may be
        asked one after the other, each with its own name; what was answered comes back at once.
        As long as one is open the step isn't attempted. Asked again by a later attempt, and not
        answered yet, a question may have changed; the newest one counts.

        A plain function, in its worker thread, calls ``anyio.from_thread.run(context.ask, name,
        question)``.

        Asked inside of the block of ``context.fan_out``, it leaves the block: children that have
        not ended are cancelled, and go on when the attempt runs again.

        Cancellation arrives before the question is saved, or else counts more than the question:
        the run is cancelled, and asks again when it is resumed.

        Args:
            name: What the question is called, within this execution of the action.
            question: What is asked: data, for whoever shows it.

        Raises:
            Halting: Nobody has answered yet. Let it pass.
            NotData: The question can't be kept.
            BadUse: The run has no store; the name was used in this attempt for another question;
                the action has ended, or is a plain function and calls this itself.

        Examples:
            >>> import anyio
            >>> @action(reads=["change"], writes=["merged"])
            ... async def review(change: str, context: Context) -> bool:
            ...     return await context.ask("approve", {"change": change})
            >>> async def main() -> None:
            ...     app = Application(review, store=MemoryStore())
            ...     result = await app.run({"change": "fix typo"}, id="pr-1")
            ...     print(result.status, result.questions[0].question)
            ...     result = await app.run(id="pr-1", answers={"approve": True})
            ...     print(result.status, result.state["merged"])
            >>> anyio.run(main)
            halted {'change': 'fix typo'}
            succeeded True
        """
        self._refuse_plain("an answer", "ask, name, question")
        if not isinstance(name, str) or not name:
            msg = f"action {self._action.name!r}: context.ask(name, ...) takes a name, not {name!r}"
            raise BadUse(msg)
        return self._ask(name, question)

    async def _ask(self, name: str, question: object) -> object:
        if self._items.is_over:
            msg = (
                f"action {self._action.name!r} of run {self.run_id} has ended, and something it "
                f"left behind asks {name!r}: await all that asks before the action returns"
            )
            raise BadUse(msg)
        return await ask(self._run, self._action.name, name, question)

    def fan_out(
        self,
        *,
        name: str,
        limits: Limits | None = None,
        store: Store | Inherit | None = INHERIT,
        hooks: Sequence[Hook] | Inherit = INHERIT,
        each: Each | None = None,
        timeout: float | None = None,
    ) -> ChildGroup:
        """Start children from within the action: ``async with context.fan_out(...) as group``.

        The escape hatch for what ``fan_out`` as an act can't say. The children are runs like any
        others: tracked, saved, told to hooks, cancelled with the action. The parent's state changes
        once, when the action returns.

        While it is inside the block, the action holds no slots of any ``Limits``.

        What the children take besides fields comes from the run's inputs. Those that no other
        action takes are to be parameters of this one, so that they are known before the run.

        Args:
            name: Names the fan-out among those of this action.
            limits: How many children are in flight; 100 by default.
            store: Where the children are kept instead of where the run is; None: nowhere, but for
                how they ended.
            hooks: Who is told of the children and their descendants, instead of the run's hooks.
            each: What goes for each child by itself: its timeout, its retry.
            timeout: Seconds from entering the block until the children are cancelled, and
                ``StepTimeout`` is raised: where the action waits for one of them next, or leaves
                the block.

        Raises:
            BadUse: It is called in a worker thread, where the plain function of an action runs.
            DefinitionError: The name was used before by this attempt, or something is not what it
                must be.
        """
        if threading.get_ident() != self._thread:
            msg = (
                f"action {self._action.name!r} calls context.fan_out in a worker thread, where it "
                f"runs since it is a plain function; make it a coroutine function: async def"
            )
            raise BadUse(msg)
        if not isinstance(name, str) or not name:
            msg = f"context.fan_out(name=...) takes a name, not {name!r}"
            raise DefinitionError(msg)
        if name in self._names:
            msg = (
                f"action {self._action.name!r} opens two fan-outs named {name!r}; their children "
                f"could not be told apart: give each its own name"
            )
            raise DefinitionError(msg)
        if limits is not None and not isinstance(limits, Limits):
            msg = f"context.fan_out(limits=...) takes Limits(n), not {limits!r}"
            raise DefinitionError(msg)
        check_cascade("context.fan_out()", store, hooks)
        if each is not None and not isinstance(each, Each):
            msg = f"context.fan_out(each=...) takes Each(...), not {each!r}"
            raise DefinitionError(msg)
        check_timeout("context.fan_out(timeout=...)", timeout)
        self._names.add(name)
        return ChildGroup(
            self._run,
            self._action,
            self._seat,
            name=name,
            limits=limits or DEFAULT_LIMITS,
            each=each,
            timeout=timeout,
            store=store,
            hooks=hooks,
        )

    def __repr__(self) -> str:
        return f"<Context of {self._action.name!r} in {self._run.path!r}>"
