"""The children that an action starts itself, with ``context.fan_out``.

Invariants:
- Hosted. The children run in a task of the engine, not in the action's task. So a native cancel of
  the action interrupts only its waits, never the group.
- Structured. The block is left only after all children have ended, cleanup included.
- An attempt holds no slots while it is inside the block. Otherwise its own children could wait for
  the slots that it holds.
- Lazy. ``start_each`` pulls an element only while the limit is greater than the number of children
  in flight or waiting for room, plus the outcomes that the action has not consumed. So a slow
  consumer slows the source down.
- If only children that wait for answers are left, the action halts: at its next wait for an
  outcome, or when it leaves the block.
- A failed save or guarding hook ends the step, even if the action suppresses the exception.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, NoReturn, Self, final

import anyio

from shoal._concurrency.background import BackgroundTask
from shoal._concurrency.cancellation import cancelled, ki_protected
from shoal._engine.call import hand_blame_to_children
from shoal._engine.child_time import waiting
from shoal._engine.commit import Write, commit
from shoal._engine.config import RunConfig
from shoal._engine.disposition import RESTING
from shoal._engine.hedged import claim
from shoal._engine.questions import halt_for, is_answered
from shoal._engine.replay import load_end
from shoal._engine.run import Run
from shoal._engine.unended import Left, end_children, is_left
from shoal._errors.exceptions import BadUse, DefinitionError, HookFailed, brief
from shoal._events.events import Failed, Outcome
from shoal._events.hooks import Hook
from shoal._events.identity import Key
from shoal._graph.act import Act
from shoal._graph.action import FunctionAction
from shoal._graph.graph import as_graph
from shoal._graph.parallel import stores_within
from shoal._graph.policy import Each, Inherit, Title
from shoal._limits.limits import Limits
from shoal._limits.permits import AttemptPermit
from shoal._state.functions import require_plain
from shoal._state.secrets import without_secrets
from shoal._state.state import held
from shoal.executors._named import Place
from shoal.stores._protocol import Store

from .action_source import ActionSource, EachSource
from .children import (
    check_depth,
    child_config,
    children_of,
    narrowed,
    only_write_reader,
    refuse_exposing,
)
from .entries import ChildTemplate
from .finish import failure_group, record_unapplied, wind_up
from .group import ChildTaskGroup
from .ledger import Ledger, new_ledger
from .recorded import read_recorded_children

ACTS = 64
"""Acts of one fan-out whose configuration is cached.

A program names few acts, so all of them fit. The bound is for actions that make an act per child:
each entry keeps its act alive, and without a bound the cache would keep all of them.
"""


@final
class ChildGroup(AbstractAsyncContextManager["ChildGroup"], AsyncIterator[Outcome]):
    """The children that an action starts itself. Made by ``context.fan_out``.

    Inside ``async with``, ``start`` and ``start_each`` add children, and ``async for`` yields their
    outcomes, failures included, in the order in which the children end. The iteration ends when all
    started children have ended.

    Leaving the block waits for the remaining children. If children failed whose outcomes were not
    consumed, it raises their failures as one ``ExceptionGroup``, in the order they were started.
    Leaving the block by an exception cancels the children, waits until they have ended, and lets
    the exception propagate. An ``await`` in a ``finally`` block of a cancelled child is cancelled
    again at once, unless ``shielded`` is around it.

    Examples:
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> @action(writes=["found"])
        ... async def search(context: Context) -> int:
        ...     async with context.fan_out(name="tries") as group:
        ...         group.start_each(square, over=range(100), item="n")
        ...         async for outcome in group:
        ...             if isinstance(outcome, Done) and outcome.value > 50:
        ...                 group.cancel("found one")
        ...                 return outcome.value
        ...     return 0
        >>> Application(search).run_sync().state["found"] > 50
        True
    """

    def __init__(
        self,
        run: Run,
        action: FunctionAction[..., Any],
        permit: AttemptPermit | None,
        *,
        name: str,
        limits: Limits,
        each: Each | None,
        timeout: float | None,
        store: Store | Inherit | None,
        hooks: Sequence[Hook] | Inherit,
        title: Title | None = None,
        executor: Place | None = None,
        ahead: int | None = None,
    ) -> None:
        """Use ``context.fan_out``."""
        # A group belongs to one attempt, so none of these is replaced.
        self._run = run
        self._action = action
        self._permit = permit
        self.name: str = f"{action.name}/{name}"
        self._limits = limits
        self._limit = limits.in_flight
        self._store, self._hooks = children_of(run, store, hooks)
        self._each = each
        self._timeout = timeout
        self._title = title
        self._executor: Place | None = executor
        self._ahead = ahead
        self._source = ActionSource(
            repr(self),
            has_room=self._has_room,
            unconsumed=lambda: self._unconsumed,
            notify=self._notify,
        )
        self._ledger = Ledger()
        # By id(act): acts that compare equal may have different bound inputs. The act is in the
        # value, so that its id is not used again while the entry exists.
        self._settings: dict[int, tuple[Act, RunConfig]] = {}
        # Both are None until the block is entered, and never again afterwards.
        self._group: ChildTaskGroup | None = None
        self._hosted: BackgroundTask | None = None
        # Why the group itself failed: a save, a hook or a source raised. Set by the engine's task,
        # raised in the action's task; failures of children are outcomes and never stand here.
        self._failure: Exception | None = None
        # The error of a start after the group was closed. If the action lets it pass, it is a
        # consequence of _failure, and _failure is raised instead.
        self._refused: BadUse | None = None
        self._ended: deque[Outcome] = deque()  # outcomes that the action has not consumed
        # Children that wait for answers. The group has this very list while it lasts.
        self._resting: list[Run] = []
        # Set before Halting is raised. Leaving the block then cancels the group, and the children
        # that wait for answers must stay halted instead of becoming cancelled.
        self._halts = False
        self._unsaved: list[Run] = []  # the batch whose save failed: recorded again at the end
        self._deadline = math.inf  # of the run and the scopes around the block; set on entering
        self._news: anyio.Event | None = None  # set only while the action waits for an outcome
        self._delivered = 0  # children in the ledger; idle when it equals the source's `made`
        self._thread = threading.get_ident()  # the event loop's; only it may start children
        self._over = False  # all children have ended; never reset
        self._left = False  # the action has left the block: it consumes no more outcomes
        self._consuming = False  # a task of the action is inside __anext__

    # -- opening and leaving --------------------------------------------------------------------

    @ki_protected
    async def __aenter__(self) -> Self:
        """Start the group, and release the action's slots for its children."""
        if self._hosted is not None:
            self._refuse("is entered a second time; call context.fan_out for another one")
        if self._run.status is not None or self._run.step != self._action.name:
            self._refuse("is entered after the action has ended")
        # Before anything is read or started.
        check_depth(self._run, self.name)
        await claim(self._run)
        self._visit = self._run.visit(self._action.name)
        self._ledger = new_ledger(self._run, self.name, self._visit, self._store)
        around = anyio.current_effective_deadline()
        # Before the group begins, whose first child may have a record.
        self._source.recorded_children = await read_recorded_children(
            self._run, self.name, self._visit, self._store
        )
        services = self._run.config.services
        # Without the group's own timeout: its scope enforces that one.
        self._deadline = min(around, self._run.config.deadline)
        self._group = ChildTaskGroup(
            self._run,
            self._source,
            self._limits,
            owner=self._action.definition,
            name=self.name,
            among=self.name,
            timeout=self._timeout,
            title=self._title,
            ahead=self._ahead,
            each=self._each,
            on_drained=self._on_drained,
        )
        self._hosted = services.host(self._execute, self._group.scope.cancel)
        # Last, with no await behind it: if something above raises, __aexit__ does not run, and the
        # slots would never be acquired again.
        if self._permit is not None:
            self._permit.release_for_children()
        return self

    @ki_protected
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        """Wait for the children, or cancel them; then acquire the action's slots again."""
        assert self._group is not None
        assert self._hosted is not None
        # Before the wait: from now on outcomes are not kept for the action, only failures are.
        self._left = True
        if error is not None:
            self._group.scope.cancel(f"the action raised {brief(error)}")
        # In this order: the group ends when its source is dry, which only a closed one is, and
        # `engage` makes it look.
        self._source.close()
        self._group.engage()
        interruption = await self._hosted.wait()
        fatal = self._hosted.fatal
        if self._permit is not None:
            going_on = interruption is None and fatal is None
            if going_on and (error is None or (isinstance(error, Exception) and not cancelled())):
                # Waits for slots if it must, and may be cancelled there.
                with waiting(self._run, "slots after its children"):
                    await self._permit.reacquire()
            else:  # the action is being cancelled, and must not wait for slots
                self._permit.reacquire_nowait()
        failed = sorted(
            (outcome for outcome in self._ended if isinstance(outcome, Failed)),
            key=lambda outcome: outcome.position,
        )
        self._ended.clear()
        # Taken out of the attribute: the frames of the raised error lead back to this group.
        failure, self._failure = self._failure, None
        explains = error is None or (failure is not None and self._explains(failure, error))
        try:
            if fatal is not None:
                raise fatal  # a KeyboardInterrupt goes before any other exception
            if interruption is not None and isinstance(error, Exception | GeneratorExit | None):
                raise interruption  # otherwise ``error`` is a cancellation or an exit itself
            if failure is not None and explains:
                raise failure
            if error is not None:
                return
        finally:
            del error, fatal, failure, interruption  # breaks the traceback cycle
        if failed:
            raise failure_group(self.name, [outcome.error for outcome in failed])
        if self._resting or self._is_cut:
            self._halt()

    def _explains(self, failure: BaseException, error: BaseException) -> bool:
        """Return whether to raise the group's ``failure`` instead of the action's ``error``.

        A failed save or guarding hook ends the run and cancels the children. An error that the
        action raises afterwards is only a consequence, and so is the error of a refused start (see
        test_a_store_that_fails_ends_the_execution_whatever_the_action_does).
        """
        if not isinstance(error, Exception) or error is failure:
            return False
        return error is self._refused or self._run.config.execution.ended_by(failure)

    def _halt(self) -> NoReturn:
        """Halt the action: only children that wait for answers, or may not start, are left."""
        self._halts = True
        unreached = None
        if self._is_cut:
            self._run.config.execution.drain.has_cut = True
            unreached = self._source.recorded_children
        halt_for(self._run, self.name, self._resting, unreached)

    def _on_drained(self) -> bool:
        """Wake the action, which halts if children are left; return whether it awaits the end."""
        self._notify()
        return self._left

    @property
    def _is_cut(self) -> bool:
        """Whether children are left that do not start any more, since the run is drained."""
        group = self._group
        return group is not None and group.is_drained and not self._source.is_exhausted

    @ki_protected
    async def _execute(self) -> None:
        """Run the children. Executed by a task of the engine, not by the action's."""
        group = self._group
        assert group is not None
        try:
            try:
                # Before the first child: a crash from here on counts against the children.
                await hand_blame_to_children(self._run)
                await group.run(
                    self._apply, self._ledger, halted=self._resting, on_answer=self._on_answer
                )
            except Exception as error:  # noqa: BLE001 # raised where the action waits next
                self._failure = error
            finally:
                await self._wind_up(group)
        finally:
            self._over = True
            self._notify()  # the last time: no outcome follows that could wake the action

    async def _apply(self, batch: list[Run]) -> None:
        try:
            # Those that an earlier execution has saved are only delivered.
            ended = [child for child in batch if not child.disposition.is_saved]
            if ended:
                await commit(self._run, Write(unapplied=ended))
        except HookFailed:
            # The hook raised after the save, so these ends stand, see
            # test_outcomes_that_a_failing_guard_received_are_still_delivered.
            self._deliver(batch)
            raise
        except Exception:
            # `_record_rest` takes it up, so that every start that hooks received has its end.
            self._unsaved = batch
            raise
        self._deliver(batch)

    async def _wind_up(self, group: ChildTaskGroup) -> None:
        """Record the remaining ends and close the source. A first failure is not replaced."""
        if self._failure is not None:
            subject = f"fan-out {self.name!r} of run {self._run.path.id}"
            await wind_up(self._end_all(group), self._failure, subject, "fan-out")
            return
        try:
            await self._end_all(group)
        except Exception as error:  # noqa: BLE001 # raised where the action waits next
            self._failure = error

    async def _end_all(self, group: ChildTaskGroup) -> None:
        try:
            await self._record_rest(group)
            if not self._keeps_rest:
                # After the ends of this execution: what is left then was not started again.
                await self._end_unended()
        finally:
            self._source.end()

    async def _record_rest(self, group: ChildTaskGroup) -> None:
        """Record and deliver the children that were cancelled, or never began."""
        # Neither is delivered yet, so each child is delivered once.
        late = [*group.inbox, *self._unsaved]
        # Children that wait for answers were delivered as halted. A cancelled group cancels them
        # too, so they are taken out of the counts and delivered once more.
        if group.scope.was_cancelled and not self._halts:
            late += self._resting
            self._delivered -= len(self._resting)
            for child in self._resting:
                self._ledger.count(child, by=-1)
            self._resting = []
            for child in late:
                if child.status == "halted":
                    child.give_up(group.scope.reason)
        # Hooks receive ends in input order, as in a batch.
        late.sort(key=lambda child: child.position)
        group.inbox.clear()
        self._unsaved = []
        try:
            await record_unapplied(self._run, late)
        finally:
            # Also if that has failed: the action must not wait for outcomes that never come.
            self._deliver(late)
            if not self._keeps_rest:
                await self._end_left_over(group.scope.reason)

    @property
    def _keeps_rest(self) -> bool:
        """Whether the action halts, and the next execution starts the children that are left."""
        assert self._group is not None
        return self._is_cut and (self._halts or not self._group.scope.was_cancelled)

    async def _end_unended(self) -> None:
        """Record the end of children of an earlier execution that were not started again."""
        config, recorded_children = self._run.config, self._source.recorded_children
        if recorded_children is None or not config.execution.is_resumed or config.execution.unsaved:
            return
        left = [Left(record, self._store) for record in recorded_children.rest() if is_left(record)]
        if left:
            why = "its action has not started it again"
            execution, store = config.execution, config.store
            await end_children(execution, store, self._run, left, decided={}, reason=why)

    async def _end_left_over(self, reason: str) -> None:
        """Record and deliver started children that never began as cancelled.

        Children that an earlier execution has completed stay completed.
        """
        # In the order of the calls: they never started, and end behind all that did.
        left = self._source.left_over()
        for child in left:
            if child.is_live:
                child.never_start(reason)
            elif child.disposition is RESTING:
                child.give_up(reason)
            elif child.lacks_history and not self._left:  # only the block reads its outcome
                await load_end(child)
        try:
            await record_unapplied(self._run, left)
        finally:
            self._deliver(left)

    async def _on_answer(self) -> None:
        """Let halted children go on in this execution, if all their questions are answered.

        Not if the action has halted with them: then it leaves its block.
        """
        if self._halts:
            return
        assert self._group is not None, "it calls this"
        answered = [child for child in self._resting if is_answered(child)]
        self._resting[:] = [child for child in self._resting if child not in answered]
        # The first by position is put back last, so it is taken first.
        for child in sorted(answered, key=lambda child: -child.position):
            self._ledger.count(child, by=-1)
            self._delivered -= 1
            child.reopen(counts=False)
            self._source.take_back(child)
        self._group.engage()

    def _deliver(self, batch: list[Run]) -> None:
        for child in batch:
            self._ledger.count(child)  # counts only: the action gets the outcome itself
            self._delivered += 1
            if child.status == "halted":
                self._resting.append(child)
                # The answer may have come while the child was halting.
                if is_answered(child) and self._group is not None:
                    self._group.look_for_answers()
                continue
            # In this order: the outcome is made of the error that the run drops next.
            outcome = child.outcome
            child.release_error()
            if not self._left or isinstance(outcome, Failed):
                self._ended.append(outcome)
        self._notify()

    def _notify(self) -> None:
        """Wake the action if it waits for an outcome."""
        if self._news is not None:
            self._news.set()
            self._news = None

    # -- starting -------------------------------------------------------------------------------

    def start(
        self,
        act: Act,
        state: Mapping[str, Any] | None = None,
        *,
        key: Key | None = None,
        inputs: Mapping[str, object] | None = None,
    ) -> None:
        """Start a child as soon as there is room. Returns at once.

        Args:
            act: The act that the child executes: an action, a graph, a fan-out.
            state: Fields that the child starts with. It also gets the fields that its act reads and
                this action reads too.
            key: The child's key, unique among this act's children of the fan-out; by default its
                position.
            inputs: Inputs of the child's actions. They take precedence over the run's inputs.

        Raises:
            BadUse: Called outside the block, after ``cancel``, or in another thread.
            BadKey: The key was used before, or is neither a str nor an int.
            MissingField: The act reads a field that is neither in ``state`` nor among those that
                this action reads.
            MissingInput: The act takes an input that was not given.
        """
        group = self._check_open("start")
        given: Mapping[str, Any] = {} if state is None else state
        if not isinstance(given, Mapping):
            msg = f"group.start(act, state) takes a mapping of fields to values, not {brief(state)}"
            raise DefinitionError(msg)
        # Of a State, only the fields that the action may read: reading others would raise.
        fields = self._run.config.execution.secrets.hold(held(given))
        # Before the child is added: what this raises is raised at the call, and starts nothing.
        kind = self._kind(act, fields, inputs)
        # Here too, since a cached configuration was not checked for this call.
        refuse_exposing(self._run, self.name, kind.config.graph)
        self._source.add(kind, key, without_secrets(fields))
        group.engage()

    def start_each(
        self,
        act: Act,
        *,
        over: Iterable[Any] | AsyncIterable[Any],
        item: str = "item",
        key: Callable[[Any], object] | None = None,
        inputs: Mapping[str, object] | None = None,
    ) -> None:
        """Start a child for each element, pulled as there is room. Returns at once.

        Elements are pulled no faster than outcomes are consumed.

        Args:
            act: The act that each child executes.
            over: The elements. The iterable may be infinite.
            item: The field in which a child finds its element.
            key: A plain function of the element that returns a str or int. Without it, the keys are
                positions.
            inputs: Inputs of the children's actions. They take precedence over the run's inputs.

        Raises:
            BadUse: Called outside the block, after ``cancel``, or in another thread.
            MissingField: The act reads a field that is neither ``item`` nor among those that this
                action reads.
            MissingInput: The act takes an input that was not given.
        """
        group = self._check_open("start_each")
        if key is not None:
            require_plain(key, f"group.start_each(key=...) of {self.name!r}")
        kind = self._kind(act, {item: None}, inputs)
        each = EachSource(
            over, name=self.name, kind=kind, item=item, key=key, started_by=self._source
        )
        self._source.add_each(each)
        # If it isn't open yet, `run` starts all feeds when it begins.
        if each.waits and group.scope.is_open:
            group.start_feeding(each)
        group.engage()

    def cancel(self, reason: str = "the action cancelled it") -> None:
        """Cancel all children that have not ended, for ``reason``. Their outcomes still arrive."""
        if self._group is not None and not self._over:
            self._group.scope.cancel(reason)
            self._notify()

    def cancel_child(
        self, key: Key, reason: str = "the action cancelled it", *, act: str | None = None
    ) -> bool:
        """Cancel one child, for ``reason``, and no sibling. Its outcome still arrives.

        Args:
            key: The child's key, or its position if it was started without one.
            reason: The reason in the child's outcome.
            act: The name of the child's act, if children of several acts have that key.

        Returns whether a child with that key had not ended. Children of elements that
        ``start_each`` has not pulled yet are not found.
        """
        if self._group is None or self._over:
            return False
        return self._group.cancellation.by_key(key, reason, act)

    def _kind(
        self, act: Act, given: Mapping[str, Any], inputs: Mapping[str, object] | None
    ) -> ChildTemplate:
        run, access = self._run, self._action.access
        known = self._settings.get(id(act))
        # Inputs may differ at each call, so a configuration with inputs is not cached.
        if known is None or inputs:
            known = act, self._setting(act, inputs)
        if not inputs and len(self._settings) < ACTS:
            self._settings[id(act)] = known
        config = known[1]
        graph = config.graph
        readable = {field: run.data[field] for field in access.reads if field in run.data}
        base = narrowed(
            readable,
            graph,
            given,
            f"the children of fan-out {self.name!r} that execute {graph.name!r}",
            f"give it to group.start, or add it to the reads=[...] of {access.action!r}",
        )
        return ChildTemplate(config, base)

    def _setting(self, act: Act, inputs: Mapping[str, object] | None) -> RunConfig:
        graph = as_graph(act, f"fan-out {self.name!r}")
        # Acts of this fan-out are not known before they are started, and neither are their stores.
        if self._run.config.execution.is_resumed:
            self._run.config.execution.know_all(stores_within(graph))
        return child_config(
            self._run,
            self.name,
            graph,
            only_write_reader(graph),
            inputs,
            visit=self._visit,
            store=self._store,
            hooks=self._hooks,
            deadline=self._deadline,
            each=self._each,
            executor=self._executor,
        )

    def _check_open(self, what: str) -> ChildTaskGroup:
        # First: what the other tests read belongs to the thread of the event loop.
        if threading.get_ident() != self._thread:
            self._refuse(
                f"is used in another thread than the event loop's; from there, call "
                f"anyio.from_thread.run_sync(group.{what}, ...)"
            )
        if self._group is None or self._left:
            self._refuse(f"is used outside of its block: call {what} inside `async with`")
        if self._group.scope.closing:
            why = f"was cancelled ({self._group.scope.reason}), so nothing can be started any more"
            self._refused = self._misuse(why)
            raise self._refused
        return self._group

    def _misuse(self, why: str) -> BadUse:
        return BadUse(f"the fan-out {self.name!r} of action {self._action.name!r} {why}")

    def _refuse(self, why: str) -> NoReturn:
        raise self._misuse(why)

    # -- consuming ------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        """Return the next outcome, waiting for it if needed."""
        if self._group is None or self._left:
            self._refuse("is iterated outside of its block")
        if self._consuming:
            self._refuse("is iterated by two tasks at once; give each its own fan-out")
        self._consuming = True
        try:
            while not self._ended:
                # Before the check for the end: a group that has failed is idle too.
                if self._failure is not None:
                    raise self._failure
                if self._is_idle:
                    if self._resting or self._is_cut:
                        self._halt()
                    raise StopAsyncIteration
                # No await between the checks above and here, so no outcome can slip in unseen.
                self._news = anyio.Event()
                await self._news.wait()
        finally:
            self._consuming = False
        # No await since the last look, so there is one.
        outcome = self._ended.popleft()
        self._group.engage()  # a consumed outcome makes room for one more element
        return outcome

    @property
    def _unconsumed(self) -> int:
        """Outcomes that the action has not consumed; 0 after it has left the block."""
        return 0 if self._left else len(self._ended)

    def _has_room(self) -> bool:
        assert self._group is not None
        return self._group.in_flight + self._unconsumed < self._limit

    @property
    def _is_idle(self) -> bool:
        """Whether all started children have ended and were delivered."""
        if self._resting and self._group is not None and self._group.scope.was_cancelled:
            return self._over  # the halted children are about to be cancelled and delivered
        if self._is_cut and self._group is not None and self._group.is_quiet:
            return True  # no child that is left starts
        # Counted when they are handed out, and again when their ends are delivered.
        return self._over or (self._source.is_exhausted and self._source.made == self._delivered)

    def __repr__(self) -> str:
        return f"<ChildGroup {self.name!r} of {self._action.name!r}>"
