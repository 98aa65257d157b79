"""The work of one process on a root run: its saves, its questions to stores, and its end.

Invariants:
- A save is acknowledged within the commit deadline, or the execution ends. After a save that failed
  or is in doubt nothing more is saved: a later save could contradict it.
- A save can't be cancelled.
- A store that can't return what it has saved ends the execution too: nothing is guessed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar, cast, final

from anyio import CancelScope, Event, current_time, move_on_after

from shoal._concurrency.cancellation import as_failure, is_natively_cancelled, shielded_wait
from shoal._errors.exceptions import (
    CommitInDoubt,
    LeaseLost,
    NotData,
    NotDecodable,
    RunClaimed,
    RunConflict,
    ShoalError,
    SpuriousCancel,
    StoreFailed,
    UpdateTooLarge,
    brief,
    note,
)
from shoal._errors.inspection import first_of
from shoal._events.hooks import Hooks
from shoal._events.identity import RunPath, new_run_id
from shoal._limits.accounts import Accounts
from shoal._limits.flows import Priority
from shoal._limits.gates import Costs, Gate
from shoal._state.secrets import Secrets
from shoal.stores._history import BudgetLevel
from shoal.stores._protocol import Batch, NullStore, Store

from .crash_suspects import CrashSuspects
from .drain import Drain
from .hold import Hold
from .root_record import RootRecord
from .second_copies import SecondCopies
from .services import Services
from .standing import stands_for

T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger("shoal")

MAX_STEPS = 1000
"""Steps that a run may take; each child has its own. More are usually an endless loop."""
MAX_DEPTH = 64
"""Levels to which runs may be nested. More are usually an endless recursion."""
GIVING_BACK = 2.0
"""Seconds that the end of a run waits for stores to release it.

A caller waits for its result meanwhile. A store that takes longer goes on by itself, or the lease
runs out.
"""
MAX_LIVE = 1000
"""Children of one execution that are alive at once, besides one of each fan-out.

Without it, a tree that fans out at every level would hold the product of all widths in memory.
"""


@final
class LiveBudget:
    """Counts live children against the maximum that all fan-outs of an execution share.

    No fan-out waits for this budget: each may always have one child that isn't counted. So a tree
    that fans out at every level goes deep instead of broad, and can't deadlock; see
    test_a_deep_tree_under_a_small_budget.
    """

    __slots__ = ("size", "used")

    def __init__(self, size: int) -> None:
        """Allow ``size`` children at once."""
        self.size: int = size
        self.used: int = 0  # never above `size`, never below 0

    @property
    def is_spent(self) -> bool:
        """Whether no permit is left."""
        return self.used >= self.size


class _Group(Protocol):
    """A group of children that are alive; the class is above."""

    @property
    def in_flight(self) -> int: ...

    @property
    def under_way(self) -> int: ...

    @property
    def parent(self) -> Any: ...


@final
class Execution:
    """A root run and all its descendants in this process, from start or resume to the end."""

    __slots__ = (
        "_claimed",
        "_failure",
        "_recorded",
        "_recording",
        "_refusal",
        "accounts",
        "forks_at",
        "answers",
        "copies",
        "costs",
        "deadline",
        "drain",
        "groups",
        "has_lost_workers",
        "held_at",
        "hold",
        "holder",
        "hooks",
        "is_interrupted",
        "is_over",
        "is_resumed",
        "is_watched",
        "keeps_nothing",
        "let_in",
        "live",
        "max_depth",
        "max_steps",
        "priority",
        "number",
        "path",
        "reducing",
        "saves_wait",
        "secrets",
        "services",
        "owner",
        "spawned_by",
        "store",
        "stores",
        "suspects",
        "turn_due",
        "turns_since",
        "unsaved",
    )

    def __init__(
        self,
        services: Services,
        hooks: Hooks,
        store: Store,
        *,
        max_steps: int = MAX_STEPS,
        max_depth: int = MAX_DEPTH,
        max_live: int = MAX_LIVE,
        deadline: float = math.inf,
        priority: Priority = "normal",
    ) -> None:
        """Begin, with nothing saved and no store claimed.

        Args:
            services: The services of the runtime.
            hooks: Receive the events of the root run and its descendants.
            store: Keeps them.
            max_steps: Steps that each run may take.
            max_depth: Levels to which runs may be nested.
            max_live: Children alive at once, besides one of each fan-out.
            deadline: The time on the loop's clock at which the caller will cancel the execution.
            priority: How urgent it is, beside others that wait for the same limits.
        """
        self.services: Services = services
        self.hooks: Hooks = hooks
        self.store: Store = store
        # By type: stores that only save derive from it.
        self.keeps_nothing: bool = type(store) is NullStore
        """Whether nothing keeps what the root run does."""
        # Never shrinks. The ends of orphans are saved in each of them; see `unended`.
        self.stores: list[Store] = [] if isinstance(store, NullStore) else [store]
        """The stores of the root run and its descendants, as far as they are known."""
        # New for each execution, also of the same run: a store refuses saves under an older id.
        self.holder: str = new_run_id()
        """The execution's own id, under which it holds the lease on the root run."""
        self.is_resumed: bool = False
        """Whether an earlier execution may have left children under way."""
        # Never reset once it is set. Ends of children are not recorded then: they go on elsewhere.
        self.is_interrupted: bool = False
        """Whether this process is stopping, so that another one resumes the run."""
        self.drain: Drain = Drain()
        """Whether it starts nothing more."""
        # Set before that save, and never reset: a save after it would say that the run goes on.
        self.is_over: bool = False
        """Whether the end of the root run is being saved, or is saved."""
        # None unless a crash came before, so that most executions save nothing before an action.
        self.suspects: CrashSuspects | None = None
        """The children that may have crashed the process of the execution before."""
        self.has_lost_workers: bool = False
        """Whether workers of an executor have died, so that crashes are counted."""
        self.secrets: Secrets = Secrets()
        """The secrets of the root run and all its descendants."""
        self.answers: dict[str, object] = {}
        """Answers to questions of the run and its descendants, by the ids of the questions."""
        # Both are set by the root run as it begins; `number` by its commits from then on.
        self.path: RunPath | None = None
        """The path of the root run."""
        self.number: int = 0
        """The number of the root run's last update."""
        self._recording: Event | None = None  # set when a save of what was spent is over
        self._recorded: int = 0  # the version of the accounts that is saved
        # None of these four changes, apart from the size of `live`: a fan-out with a larger limit
        # raises it.
        self.max_steps: int = max_steps
        self.max_depth: int = max_depth
        self.live: LiveBudget = LiveBudget(max_live)
        self.deadline: float = deadline
        # These belong to the scheduler of limits, which alone sets them.
        self.turn_due: float = 0.0
        self.turns_since: float = 0.0
        """The scheduler's notes on this execution, so that executions take turns."""
        self.held_at: Gate | None = None  # also the scheduler's
        """The gate at which its requests wait while it is held; None: it isn't."""
        self.priority: Priority = priority
        """The class in which it takes turns at limits."""
        self.let_in: set[object] | None = None  # also the scheduler's
        """The limits with ``waiting=`` that have let it in; None: none has."""
        self.costs: Costs | None = None  # also the scheduler's
        """What was charged to it at limits with ``cost=``; None: nothing yet."""
        self.copies: SecondCopies | None = None
        """The second copies of late attempts; None: no fan-out has a hedge."""
        # Set with `_failure`, and never reset, also when that error is released.
        self.unsaved: bool = False
        """Whether a save failed, so that nothing more can be saved."""
        self.saves_wait: bool = False
        """Whether the last save had to be awaited: then fan-outs save several ends at once."""
        # Both belong to the sampler of the runtime, but for `reducing`, to which batches add.
        self.is_watched: bool = False
        """Whether what the runs do is sampled."""
        self.reducing: float = 0.0
        """Seconds in which results were applied, if the execution is watched."""
        # Groups add and remove themselves; `cancel_child` finds the group of a child here.
        self.groups: set[object] = set()
        """The groups of children that are alive now, at all depths."""
        # They refer to parts of this object, and not to it: that would be a cycle. So neither of
        # the two parts is ever replaced.
        self.accounts: Accounts = Accounts(
            answers=self.answers, is_busy=partial(_is_busy, self.groups)
        )
        """The accounts of its budgets."""
        self.hold: Hold = Hold(services.clock)
        """Whether anything new may start."""
        # The first failure of a save; every further save raises it.
        self._failure: ShoalError | None = None
        # Why the program can't resume the saved run. It ends the whole tree, at any depth: as a
        # child's failure an ``on_error`` could tolerate it, and it would be recorded as a result.
        # See test_a_conflict_inside_of_a_child_refuses_the_run.
        self._refusal: RunConflict | None = None
        # Both are set by the root run, as soon as it knows; so is `priority` of a resumed run.
        self.spawned_by: tuple[RunPath, str] | None = None
        """The run, and its step, whose action has started the root run by hand."""
        self.owner: str = ""
        """Whose run it is; empty if it has no owner."""
        self.forks_at: int | None = None
        """The number of the root run's last update before the step at which it was resumed."""
        # One for each store that was asked, also if the answer is unknown: all are released.
        self._claimed: list[_Claim] = []

    def know_all(self, stores: Iterable[Store]) -> None:
        """Add stores that may keep descendants. Adding one again does nothing."""
        for store in stores:
            # By identity, since users' stores may define equality.
            is_known = any(one is store for one in self.stores)
            if not is_known and not isinstance(store, NullStore):
                self.stores.append(store)

    def hold_up(self, reason: str) -> None:
        """Start nothing new until ``let_go`` is called with the same reason; see ``hold``."""
        if self.hold.add(reason):
            self.services.admission.scheduler.hold(self)

    def let_go(self, reason: str) -> None:
        """Remove a reason of ``hold_up``; with the last one everything goes on."""
        if self.hold.remove(reason):
            # Requests that have waited first: among them are those of children under way.
            self.services.admission.scheduler.release(self)
            self.hold.release_members()

    def forget(self) -> None:
        """Release the errors that end the execution, once one of them is being raised.

        Their tracebacks lead back to this object; see test_what_a_run_raised_leaves_no_cycles.
        """
        self._failure = self._refusal = None
        self.hooks.failures.clear()

    @property
    def failure(self) -> ShoalError | None:
        """The error that ends the execution: of a save, a guarding hook or a changed program."""
        return first_of(self._failure, self._refusal, *self.hooks.failures)

    def refuse(self, error: RunConflict) -> RunConflict:
        """End the execution, since the program can't resume the run; return ``error`` to raise."""
        self._refusal = first_of(self._refusal, error)
        return error

    @property
    def is_doomed(self) -> bool:
        """Whether the execution will end: a save or guarding hook failed, or the run is refused."""
        return self.failure is not None

    def ended_by(self, error: BaseException) -> bool:
        """Return whether ``error`` ends the whole execution, and not only the run that raised it.

        Such errors come from a store, a guarding hook or a changed program. No ``on_error``
        tolerates them.
        """
        # By identity: an action may raise errors of the same types, and those fail only its run.
        ends = (self._failure, self._refusal, *self.hooks.failures)
        return any(error is one for one in ends)

    def reduce(self, apply: Callable[[U], T], batch: U) -> T:
        """Apply results, and count the time that it takes if the execution is watched."""
        if not self.is_watched:
            return apply(batch)
        began = self.services.clock()
        try:
            return apply(batch)
        finally:
            self.reducing += self.services.clock() - began

    def begin_record(self, path: RunPath, number: int) -> None:
        """Record what is spent from now on, since the run has begun."""
        self.path, self.number = path, number
        self.accounts.run_id = path.id
        self.accounts.keeps = not isinstance(self.store, NullStore)

    @stands_for("store")
    async def record_spent(self) -> None:
        """Save what has changed in the accounts by now, and wait until it is saved.

        Saves of this kind are made one after the other, because the last one counts, and a store
        may keep two in any order. Attempts that begin together share one.

        Raises:
            ShoalError: As ``save``.
        """
        wanted = self.accounts.version
        while self._recorded < wanted and self._failure is None:
            recording = self._recording
            if recording is None:
                await self._save_spent()
            else:
                with CancelScope(shield=True):
                    await shielded_wait(recording.wait())
        if self._failure is not None:
            raise self._failure

    async def _save_spent(self) -> None:
        assert self.path is not None, "accounts change after the run has begun"
        version, changed = self.accounts.version, self.accounts.take_changed()
        spent = tuple(BudgetLevel(*account.level) for account in changed)
        batch = Batch(RootRecord(self.path), spent=spent, before=self.number, holder=self.holder)
        recording = self._recording = Event()
        try:
            await self._save(batch, self.store)
            self._recorded = version
        except BaseException:
            for account in changed:
                self.accounts.note(account)
            raise
        finally:
            recording.set()
            self._recording = None

    @stands_for("store")
    async def save(self, batch: Batch, store: Store) -> None:
        """Save ``batch`` in ``store``; before it, what attempts have cost by now.

        Once a save has failed, each further one raises the error of the first.

        Raises:
            ShoalError: As ``_save``.
        """
        if self._recorded != self.accounts.version:
            await self.record_spent()
        await self._save(batch, store)

    @stands_for("store")
    async def _save(self, batch: Batch, store: Store) -> None:
        """Save ``batch`` in ``store``.

        Raises:
            NotData: Some value can't be saved, so nothing is. The execution goes on: the step that
                made the value fails.
            UpdateTooLarge: A value is too large; otherwise as ``NotData``.
            StoreFailed: The store raised; the batch is not saved.
            CommitInDoubt: The store did not acknowledge in time; whether the batch is saved is
                unknown.
            LeaseLost: Another execution has the run; the batch is not saved.
        """
        if self._failure is not None:
            raise self._failure
        pending: Awaitable[None] | None = None
        waited: CancelScope | None = None  # only while a save takes time
        try:
            pending = store.save(batch)
            # For the next batch of ends: after a save that took no time it need not wait for more.
            self.saves_wait = pending is not None
            if pending is None:  # saved already, in memory or by a thread that writes behind
                return
            # Shielded, since a cancelled save might be kept or not. The deadline is all that ends
            # the wait; see test_cancelled_during_each_save.
            with move_on_after(self.services.commit_deadline, shield=True) as waited:
                await self._acknowledged(pending, batch)
                return
        except (CommitInDoubt, LeaseLost, StoreFailed) as error:
            note(
                error,
                f"shoal: at a save of run {batch.path.id}, which stops at its last saved state",
            )
            # As the store has raised it: these say already what happened and what to do.
            raise self._first(error) from error.__cause__
        except Exception as error:
            # Refused before anything was written: the store works, and the value is at fault.
            if pending is None and isinstance(error, NotData | UpdateTooLarge):
                raise
            if waited is not None and waited.cancel_called:
                # The answer of a driver to the end of the wait, and none to the save.
                raise self._late(batch) from error
            why = f"{brief(error)}; the run stops at its last saved state"
            msg = f"the store could not keep a save of run {batch.path.id}: {why}"
            raise self._first(StoreFailed(msg)) from error
        raise self._late(batch)

    def _late(self, batch: Batch) -> Exception:
        """Return the error of a save that was not acknowledged in time."""
        why = f"did not acknowledge it within {self.services.commit_deadline:g} s"
        return self._first(_in_doubt(batch, why))

    @stands_for("store")
    async def claim(self, store: Store, run_id: str) -> bool:
        """Acquire the lease on the root run in ``store``. Acquiring it again does nothing.

        It can't be cancelled. Other tasks that need the store wait for the same answer: without
        the lease their saves would be refused, as if another execution had the run (see
        test_a_claim_that_is_never_answered_is_everybodys).

        Returns whether the execution that held the lease before has died.

        Raises:
            RunClaimed: Another execution holds the lease.
            StoreFailed: The store raised, or did not answer in time.
        """
        claim = next((claim for claim in self._claimed if claim.store is store), None)
        # A loop: the task that asked may be interrupted, and another waiter may then ask first.
        while claim is not None and claim.answered is not None:
            with CancelScope(shield=True):
                await claim.answered.wait()
        if claim is None:
            claim = _Claim(store, run_id)
            # Before the store is asked: it may have granted the lease though its answer was lost,
            # and then `release` must give it back.
            self._claimed.append(claim)
        elif claim.is_had:
            return False
        elif self._failure is not None:
            raise self._failure
        # Else the task that asked was cancelled natively, which no shield holds off: ask again.
        claim.answered = Event()
        has_died: bool | None = False
        try:
            with CancelScope(shield=True):
                has_died = await self.ask(store.claim(run_id, self.holder), f"run {run_id}")
                # Inside of the shield, so that an answer that has come is also remembered.
                claim.is_had = True
        finally:
            # None first: a waiter that wakes up must not find the event that was set.
            answered, claim.answered = claim.answered, None
            answered.set()
        return bool(has_died)

    async def release(self) -> None:
        """Release all leases. A store that can't release its lease lets it run out.

        The wait for all stores together takes at most ``GIVING_BACK`` seconds: the run has ended,
        and its caller may have a deadline. Each store is asked, also if a native cancellation
        interrupts the wait for another one, since no shield holds those off.

        Raises:
            BaseException: Such an interruption, and nothing else.
        """
        if self._claimed:
            seconds = min(GIVING_BACK, self.services.commit_deadline)
            await self._release_by(current_time() + seconds)

    @stands_for("store")
    async def _release_by(self, until: float) -> None:
        try:
            while self._claimed:
                # Removed before the wait: after an interruption the rest goes on with the others.
                claim = self._claimed.pop()
                store, run_id = claim.store, claim.run_id
                scope = CancelScope(deadline=until, shield=True)
                try:
                    with scope:
                        await shielded_wait(store.release(run_id, self.holder))
                except BaseException as error:
                    if as_failure(error) is None:
                        raise
                    # Logged and not raised: the run has ended, and its result must not be lost for
                    # this.
                    logger.exception("run %s could not be given back to its store", run_id)
                if scope.cancelled_caught:
                    logger.error(
                        "run %s could not be given back to its store in time; if the store doesn't "
                        "do it later, the claim ends with its lease",
                        run_id,
                    )
        finally:
            # Only after an interruption. See
            # test_each_store_is_given_its_run_back_though_a_release_is_interrupted.
            if self._claimed:
                await self._release_by(until)

    @stands_for("store")
    async def ask(
        self, pending: Awaitable[T], what: str, passes: tuple[type[Exception], ...] = ()
    ) -> T:
        """Return the answer of a store to a question. It may be cancelled, natively too.

        Args:
            pending: The store's answer.
            what: Names the question in the error: "it could not be asked for ...".
            passes: Types of errors that don't end the execution.

        Raises:
            NotDecodable: Saved data can't be read; the message says what to do.
            StoreFailed: The store raised, or did not answer in time.
        """
        deadline = self.services.commit_deadline
        scope = CancelScope(deadline=current_time() + deadline)
        # A store's driver may raise a cancellation of its own, which is a failure of the store. A
        # native cancel of this task is not. Only the count of native cancels tells them apart; one
        # that is pending already and not yet raised counts as coming in the wait. See
        # test_a_native_timeout_while_a_store_is_asked.
        native_cancels = self.services.native_cancels()
        before = native_cancels() - is_natively_cancelled()
        try:
            with scope:
                return await pending
            raise TimeoutError  # the scope has swallowed the cancellation by its deadline
        except BaseException as error:
            failure = as_failure(error)
            if failure is None or isinstance(failure, passes):
                raise
            if not isinstance(error, Exception) and native_cancels() > before:
                raise  # it was meant for this task, and the store is not at fault
            if isinstance(failure, NotDecodable):
                note(failure, f"shoal: the store was asked for {what}")
            if isinstance(failure, RunClaimed | LeaseLost | NotDecodable | StoreFailed):
                raise self._first(failure) from failure.__cause__
            # Only then the deadline is to blame: a driver may raise a TimeoutError of its own.
            late = scope.cancelled_caught
            why = f"it did not answer within {deadline:g} s" if late else brief(failure)
            msg = f"the store could not be asked for {what}: {why}; the run stops"
            raise self._first(StoreFailed(msg)) from failure

    async def _acknowledged(self, pending: Awaitable[None], batch: Batch) -> None:
        try:
            await shielded_wait(pending)
        except BaseException as error:
            failure = as_failure(error)
            if not isinstance(failure, SpuriousCancel):
                raise
            # User code in a store or hook cancelled the task it ran in, which is this one. The
            # save may be on its way, so it is in doubt.
            raise _in_doubt(batch, "was interrupted meanwhile") from failure

    def _first(self, failure: ShoalError) -> ShoalError:
        """Return the first failure, which may be ``failure``: that one ends the execution."""
        if self._failure is None:
            # Both in one step, and only once: later saves repeat the first failure, which says the
            # most.
            self._failure, self.unsaved = failure, True
        return self._failure


@final
class _Claim:
    """The lease on the root run in one store."""

    __slots__ = ("answered", "is_had", "run_id", "store")

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.run_id = run_id
        self.answered: Event | None = None
        """Set when the store has answered; None unless a task is asking now."""
        self.is_had = False  # set once the store has granted it, and never reset


def _in_doubt(batch: Batch, why: str) -> CommitInDoubt:
    return CommitInDoubt(
        f"whether a save of run {batch.path.id} is kept is unknown: the store {why}; "
        f"the run stops, and learns from the store what happened when it is resumed"
    )


def _is_busy(groups: Collection[object], payers: Collection[object]) -> bool:
    """Return whether a child is at work that doesn't wait for children of its own.

    Args:
        groups: The groups of children that are alive.
        payers: The permits of runs whose attempts are inside of their own fan-outs. Such an
            attempt that has no child under way is at work itself.
    """
    live = cast("Collection[_Group]", groups)
    blocked = {group.parent.slot_owner.permits for group in live if group.under_way}
    if not blocked.issuperset(payers):
        return True
    at_work = sum(group.in_flight for group in live)
    # A child with groups waits for their children, and is in flight itself.
    waiting = {owner.path for group in live if (owner := group.parent.slot_owner).path.parent}
    return at_work > len(waiting)
