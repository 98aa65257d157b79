"""Serve the outcomes of a recorded run, in place of the functions of leaf actions.

Invariants:
- A leaf ends when it had ended in the recorded run, on the virtual clock, and not before the
  siblings that had ended before its child. So races, and reducers, see the recorded order.
- An action that has started children of its own is called: its children are served.
- What the recorded run cancelled, or had not ended when its record ends, waits until it is
  cancelled.
- The first call for which the recorded run has no outcome, although it went past that place, ends
  the replay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn, cast, final

import anyio

from shoal._engine.fanout.context import Context
from shoal._engine.injection import RECORDED_ITEM
from shoal._engine.questions import ask
from shoal._engine.run import Run
from shoal._events.hooks import Hook
from shoal._events.identity import RunPath
from shoal._graph.action import FunctionAction
from shoal._limits.retry import Retry
from shoal._state.state import Change, Extend, Operation, Set, change_of
from shoal.stores._codec.codec import Codec
from shoal.stores._history import Entry
from shoal.stores._memory import MemoryStore
from shoal.stores._protocol import Batch, ChildRecord, NullStore, RunRecord, SavedRun, Store
from shoal.stores._sql.rows import OPERATIONS

from ._differences import Difference, edge_between, retry_difference
from ._recorded import RecordedRun, RecordedStep, Recording

_HORIZON = 100 * 365 * 86_400.0
"""Seconds of virtual time after which nothing cancels any more what waits to be cancelled: longer
than any timeout of a program."""
_PATIENCE = 86_400.0
"""Seconds of virtual time for which a leaf waits until siblings that ended before it have ended. In
a changed program one of them may need what the leaf holds, a slot for example."""


@final
class RecordedFailure(Exception):
    """Stands for the exception of a recorded root run, of which a store keeps only the text."""


@final
class Conductor:
    """Serves the outcomes of one recorded run to one execution of the present program."""

    def __init__(self, recording: Recording, codec: Codec) -> None:
        """Serve nothing yet. To be made in the event loop of the replay."""
        self._recording = recording
        self._codec = codec
        self._store = ReplayedStore(self._note_ended)
        self._began_at = anyio.current_time()
        self._ended: set[RunPath] = set()
        self._waits: dict[RunPath, anyio.Event] = {}
        self._gave_item: set[tuple[RunPath, str, int]] = set()
        self.served: int = 0
        """Calls that were served an outcome."""
        self.called: set[str] = set()
        """The actions that were called, because they start children of their own."""
        self.difference: Difference | None = None
        """Where the program went past the record."""
        self.waits_for: RecordedRun | None = None
        """A run that waits for a cancellation which never came."""
        self.over: anyio.Event = anyio.Event()
        """Set when nothing more can be served."""

    # -- the port: see ``Injection`` ---------------------------------------------------------------

    @property
    def kept(self) -> MemoryStore:
        """What was saved so far."""
        return self._store.kept

    @property
    def seed(self) -> int:
        """Makes the delays of retries repeatable."""
        return 0

    @property
    def debug(self) -> bool:
        """Nothing is looked for: served values are decoded anew, and shared by nothing."""
        return False

    def hooks(self) -> Sequence[Hook]:
        """Return no hooks."""
        return ()

    def is_for(self, run: Any, retry: Retry, error: Exception) -> bool:
        """Return whether a failure is tried again; as recorded, if that can't be told any more.

        A store keeps the type, the text and the arguments of an exception, and not all of its
        attributes, which a function given as ``on=`` may look at.
        """
        try:
            return retry.is_for(error)
        except Exception:  # noqa: BLE001 # see above
            recorded = self._recording.find(run.path)
            return recorded is not None and run.attempt < recorded.attempts

    def store(self, given: Store) -> Store:
        """Return the store of the replay, in place of whatever store."""
        return self._store if not isinstance(given, NullStore) else given

    def call(
        self,
        run: Any,
        action: FunctionAction[..., object],
        call: Callable[[], Awaitable[Change]],
        context: Any,
    ) -> Awaitable[Change]:
        """Serve an outcome; call an action that has started children of its own."""
        recorded = self._recording.find(run.path)
        if any(field not in run.head[1] for field in action.fields):
            return call()  # which refuses that
        if recorded is None or not recorded.has_below(action.name):
            return self._serve(run, action, context, recorded)
        self.called.add(action.name)
        for question, answer in self._recording.root.answers.items():
            run.config.execution.answers.setdefault(question, self._decoded(answer))
        return call()

    async def _serve(
        self,
        run: Run,
        action: FunctionAction[..., Any],
        context: Context | None,
        recorded: RecordedRun | None,
    ) -> Change:
        visit = run.visit(action.name)
        step = None if recorded is None else recorded.step(action.name, visit)
        if recorded is None:
            return await self._serve_unknown(run.path)
        if step is None or not step.is_completed:
            return await self._serve_unended(run, action, recorded, step)
        self._check_attempts(run, action, recorded)
        await self._wait_for_turn(run, recorded, step)
        self.served += 1
        if context is not None:
            self._charge(run, action.name, context, recorded, step)
        operations = self._operations(step)
        if run.config.is_forgotten:
            # One update has the changes of all steps of the child.
            operations = [one for one in operations if one.field in action.writes]
        return change_of(run.head[1], operations)

    async def _serve_unended(
        self,
        run: Run,
        action: FunctionAction[..., Any],
        recorded: RecordedRun,
        step: RecordedStep | None,
    ) -> Change:
        """Serve a step that the recorded run has not completed, or not taken."""
        if recorded.status == "failed" and self._may_have_failed_in(recorded, action.name):
            await self._fail(run, action, recorded, step)
        if recorded.status == "succeeded":
            operations = self._unnamed(run, action, recorded, step)
            if operations is not None:
                await self._wait_for_turn(run, recorded, None)
                self.served += 1
                return change_of(run.head[1], operations)
        elif step is not None and step.asked:
            for name, question, _, *schema in step.asked:
                asked = self._decoded(question)
                await ask(run, action.name, name, asked, schema[0] if schema else None)
        if recorded.is_over or self._was_elsewhere(recorded, action.name):
            taken = sum({} if run.steps is None else run.steps.visits.values())
            return await self._differ_for_good(edge_between(recorded, action.name, taken))
        return await self._wait_for_cancel(recorded)

    def _unnamed(
        self,
        run: Run,
        action: FunctionAction[..., Any],
        recorded: RecordedRun,
        step: RecordedStep | None,
    ) -> Sequence[Operation] | None:
        """Return what a step of a child that succeeded did, if its record doesn't name the step.

        None: the child never took the step.
        """
        if run.config.is_forgotten:
            # Only its end was kept: its value, or one update with the changes of all its steps.
            kept = [one for one in self._operations(*recorded.steps) if one.field in action.writes]
            value = self._decoded(recorded.value)
            return kept or [Set(field, value) for field in sorted(action.writes)]
        is_known = any(run.visit(one.name) <= one.visit for one in recorded.steps)
        if step is not None or is_known or recorded.parent is None:
            return None
        if not action.writes:  # its last step saves nothing, then
            return ()
        if recorded.has_value and not recorded.steps and action.only_write is not None:
            return (Set(action.only_write, self._decoded(recorded.value)),)
        return None

    async def _fail(
        self,
        run: Run,
        action: FunctionAction[..., Any],
        recorded: RecordedRun,
        step: RecordedStep | None,
    ) -> NoReturn:
        """Fail as the recorded run did, in all of its attempts."""
        self._check_attempts(run, action, recorded)
        error = None if recorded.error is None else self._decoded(recorded.error)
        if not isinstance(error, Exception):  # a store keeps only the text of a root run's
            error = RecordedFailure(recorded.error_text or recorded.reason or "the run failed")
        is_further = run.attempt > recorded.attempts and recorded.parent is not None
        if is_further and not isinstance(error, TimeoutError):
            await self._differ_for_good(retry_difference(recorded, action.name, run.attempt))
        each = run.config.each
        retry = action.retry or (None if each is None else each.retry)
        # The last attempt fails at the recorded time, and earlier ones at once: their times, and
        # their errors, are not on record.
        is_last = run.attempt >= recorded.attempts
        if retry is None or is_last or not self.is_for(run, retry, error):
            await self._wait_for_turn(run, recorded, step)
        self.served += 1
        raise error

    async def _serve_unknown(self, path: RunPath) -> Change:
        """Serve a child that the record does not have."""
        while path.parent is not None and self._recording.find(path.parent) is None:
            path = path.parent
        parent = None if path.parent is None else self._recording.find(path.parent)
        assert parent is not None, "the replay has the id of the recorded run"
        step = parent.step(path.step, path.visit)
        if step is None:
            if parent.is_over or self._was_elsewhere(parent, path.step):
                return await self._differ_for_good(edge_between(parent, path.step))
            return await self._wait_for_cancel(parent)
        # A step that was decided, or ended early, may have left out elements, or contestants that
        # its stagger had not started. Contestants have no keys.
        acts = step.acts or {act for act, _ in step.children}
        is_contestant = path.key == "" and path.act not in acts
        is_early = step.decision is not None or (not step.is_completed and "/" not in step.name)
        if is_early and not is_contestant:
            return await self._wait_for_cancel(parent)
        return await self._differ_for_good(Difference.of_new_child(parent, step, path))

    def _was_elsewhere(self, recorded: RecordedRun, step: str) -> bool:
        """Return whether the recorded run was in another step when its record ends."""
        last = recorded.steps[-1] if recorded.steps else None
        return last is not None and not last.is_completed and last.name != step

    def _may_have_failed_in(self, recorded: RecordedRun, step: str) -> bool:
        """Return whether the recorded run failed in a step, as far as that is known."""
        if recorded.failed_step:
            return recorded.failed_step == step
        return not self._was_elsewhere(recorded, step)

    # -- retries -----------------------------------------------------------------------------------

    def _check_attempts(
        self, run: Run, action: FunctionAction[..., Any], recorded: RecordedRun
    ) -> None:
        """Note a child of one step that needed more attempts than it may make now."""
        of_others = any(step.children for step in recorded.all_steps())
        if len(recorded.steps) > 1 or recorded.parent is None or of_others:
            return  # the attempts of all its steps are counted in one
        allowed = 1
        each = run.config.each
        for retry in (action.retry, None if each is None else each.retry):
            allowed *= 1 if retry is None else retry.attempts
        if recorded.attempts > allowed and run.attempt == 1:
            self._differ(retry_difference(recorded, action.name, allowed))

    # -- the order ---------------------------------------------------------------------------------

    async def _wait_for_turn(
        self, run: Run, recorded: RecordedRun, step: RecordedStep | None
    ) -> None:
        """Wait until the recorded time of an outcome, and for the siblings that came before."""
        closes = recorded.is_over and (step is None or recorded.steps[-1] is step)
        if recorded.parent is None:
            closes = False
        due = recorded.ended if closes or step is None else step.at
        await self._give_item(run, recorded, due)
        await self._sleep_until(due)
        # The runs whose ends this outcome is: the child, and its parent if nothing follows there.
        at: RecordedRun | None = recorded if closes else None
        while at is not None and at.parent is not None:
            if at.predecessor is not None:
                await self._wait_for_end(at.predecessor)
            of = at.parent.step(at.path.step, at.path.visit)
            assert of is not None, "it has the child"
            is_last = of.last is at and at.parent.steps[-1] is of
            at = at.parent if is_last and at.parent.is_over else None

    async def _sleep_until(self, due: float) -> None:
        now = anyio.current_time()
        until = self._began_at + due
        deadline = anyio.current_effective_deadline()
        if until >= deadline:
            # The recorded run was halted or down for longer than its timeouts.
            until = now + (deadline - now) / 2
        if until > now:
            await anyio.sleep(until - now)

    async def _wait_for_end(self, sibling: RecordedRun) -> None:
        if sibling.path in self._ended:
            return
        now, deadline = anyio.current_time(), anyio.current_effective_deadline()
        seconds = _PATIENCE if deadline == math.inf else (deadline - now) / 2
        event = self._waits.setdefault(sibling.path, anyio.Event())
        with anyio.move_on_after(seconds):
            await event.wait()

    async def _give_item(self, run: Run, recorded: RecordedRun, due: float) -> None:
        """Decide races of partial items, which no store keeps, at the time of their decisions."""
        at = recorded
        while at.parent is not None and run.config.on_item is not None:
            step = at.parent.step(at.path.step, at.path.visit)
            if step is not None and step.by_item and step.decision is not None:
                act, key = step.decision[0]
                where = at.parent.path, step.name, step.visit
                is_winner = (at.path.act, at.path.key) == (act, key)
                if is_winner and where not in self._gave_item and step.decided_at <= due:
                    self._gave_item.add(where)
                    await self._sleep_until(step.decided_at)
                    run.config.on_item(run, RECORDED_ITEM)
            at = at.parent

    def _charge(
        self, run: Run, action: str, context: Context, recorded: RecordedRun, step: RecordedStep
    ) -> None:
        """Let an attempt cost what the action had spent of budgets until then, besides the rest.

        The rest is what the replay has spent: a loser costs its worst case here as it did there,
        see test_losers_cost_what_they_cost_in_the_record.
        """
        number = step.updates[-1].number - 1 if step.updates else 0
        at = recorded
        while at.parent is not None:  # the spending is on record in the root run alone
            number = -1 if at.applied is None else at.applied - 1
            at = at.parent
        before = run.config.execution.accounts.spent_by(action)
        for unit, spent in self._recording.spent(action, number).items():
            context.charge(max(0.0, spent - before.get(unit, 0.0)), unit=unit)

    def _note_ended(self, paths: Sequence[RunPath]) -> None:
        """Let those go on that wait for these runs: their ends are saved."""
        self._ended.update(paths)
        for path in paths:
            event = self._waits.pop(path, None)
            if event is not None:
                event.set()

    # -- the end -----------------------------------------------------------------------------------

    async def _wait_for_cancel(self, recorded: RecordedRun) -> NoReturn:
        await anyio.sleep(_HORIZON)
        if self.waits_for is None:
            self.waits_for = recorded
        self.over.set()
        await anyio.sleep_forever()
        raise AssertionError

    def _differ(self, difference: Difference) -> None:
        if self.difference is None:
            self.difference = difference
        self.over.set()

    async def _differ_for_good(self, difference: Difference) -> NoReturn:
        self._differ(difference)
        await anyio.sleep_forever()
        raise AssertionError

    # -- values ------------------------------------------------------------------------------------

    def _operations(self, *steps: RecordedStep) -> list[Operation]:
        updates = [update for step in steps for update in step.updates]
        return [self._operation(*one) for update in updates for one in update.operations]

    def _decoded(self, value: Any) -> Any:
        return self._codec.decode(json.dumps(value))

    def _operation(self, kind: str, *parts: Any) -> Operation:
        field, *values = parts
        decoded = [self._decoded(one) for one in values]
        if kind == "extend":
            return Extend(field, tuple(cast("Sequence[object]", decoded[0])))
        return OPERATIONS[kind](field, *decoded)


@final
class ReplayedStore:
    """The store of a replay: in memory, without a cache of results. It tells who has ended."""

    def __init__(self, on_ended: Callable[[Sequence[RunPath]], None]) -> None:
        """Keep nothing yet; call ``on_ended`` with the runs whose ends are saved."""
        self.kept: MemoryStore = MemoryStore()
        self._on_ended = on_ended

    async def claim(self, run_id: str, holder: str) -> bool | None:
        """See ``Store``."""
        return await self.kept.claim(run_id, holder)

    async def load(self, run_id: str) -> RunRecord | None:
        """See ``Store``."""
        return await self.kept.load(run_id)

    def pack(self, child: SavedRun) -> object:
        """See ``Store``."""
        return self.kept.pack(child)

    def save(self, batch: Batch) -> None:
        """See ``Store``."""
        self.kept.save(batch)
        ended = [child.path for child in (*batch.applied, *batch.unapplied)]
        if ended:
            self._on_ended(ended)

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        """See ``Store``."""
        return await self.kept.read(path, from_number)

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """See ``Store``."""
        return await self.kept.children(path, step, visit)

    async def release(self, run_id: str, holder: str) -> None:
        """See ``Store``."""
        await self.kept.release(run_id, holder)
