"""One process's work on a root run: what it keeps, and asks of, a store. Imports services.

Invariants:
- A save is acknowledged within the commit deadline, or the execution ends. After a save that failed
  or is in doubt nothing is saved any more: what came after it could contradict it.
- A save can't be cancelled.
- A store that can't say what it has kept ends the execution too: nothing is guessed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Iterable
from typing import TypeVar, final

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
from shoal._events.identity import new_run_id
from shoal._state.secrets import Secrets
from shoal.stores._protocol import Batch, NullStore, Store

from .crash_suspects import Suspects
from .services import Services

T = TypeVar("T")

logger = logging.getLogger("shoal")

MAX_STEPS = 1000
"""Steps that a run may take, children counting for themselves."""
MAX_DEPTH = 64
"""How deep runs may be nested."""
GIVING_BACK = 2.0
"""Seconds for which the end of a run waits until the run was given back to its store."""
MAX_LIVE = 1000
"""Children of one execution that are alive at once, besides one of each fan-out."""


@final
class LiveBudget:
    """How many more children may be alive: shared by all fan-outs of an execution.

    Nobody waits for it. Each fan-out always has one child without asking; so a tree that fans out
    at every level goes deep instead of broad, and can't lock itself up.
    """

    __slots__ = ("size", "used")

    def __init__(self, size: int) -> None:
        """Allow ``size`` of them."""
        self.size: int = size
        self.used: int = 0

    @property
    def is_spent(self) -> bool:
        """Whether there is no permit left."""
        return self.used >= self.size

    def take(self) -> bool:
        """Take a permit, if there is one."""
        if self.used >= self.size:
            return False
        self.used += 1
        return True

    def give(self) -> None:
        """Give one back."""
        self.used -= 1


@final
class Execution:
    """From the start or resume of a root run to its end in this process."""

    __slots__ = (
        "_claimed",
        "_failure",
        "_refusal",
        "forks_at",
        "answers",
        "deadline",
        "groups",
        "holder",
        "hooks",
        "is_interrupted",
        "is_resumed",
        "live",
        "max_depth",
        "max_steps",
        "saves_wait",
        "secrets",
        "services",
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
    ) -> None:
        """Begin.

        Args:
            services: The runtime's.
            hooks: Told of the root run and its descendants.
            store: Where they are kept.
            max_steps: Steps that each of them may take.
            max_depth: How deep runs may be nested.
            max_live: Children alive at once, besides one of each fan-out.
            deadline: The time on the loop's clock at which the caller will cancel it.
        """
        self.services: Services = services
        self.hooks: Hooks = hooks
        self.store: Store = store
        self.stores: list[Store] = []
        """Where the root run and its descendants are kept, as far as that is known."""
        self.know_all((store,))
        self.holder: str = new_run_id()
        """Its own id, by which it holds the claim on the root run."""
        self.is_resumed: bool = False
        """Whether an earlier execution may have left children behind."""
        self.is_interrupted: bool = False
        """Whether its process stops, so that another one is to go on with it."""
        self.suspects: Suspects | None = None
        """Where the process of the execution before has died, who may have done that."""
        self.secrets: Secrets = Secrets()
        """What is secret in the whole tree of the root run."""
        self.answers: dict[str, object] = {}
        """What was answered to questions of the run and its descendants, by their ids."""
        self.max_steps: int = max_steps
        self.max_depth: int = max_depth
        self.live: LiveBudget = LiveBudget(max_live)
        self.deadline: float = deadline
        self.turn_due: float = 0.0
        self.turns_since: float = 0.0
        """What ``Admission`` remembers of it, so that executions take turns."""
        self.unsaved: bool = False
        """Whether a save failed, so that nothing can be saved any more."""
        self.saves_wait: bool = False
        """Whether the last save was waited for, so that one of more costs hardly more."""
        self.groups: set[object] = set()
        """The groups of children that live now, at all depths."""
        self._failure: ShoalError | None = None  # of a save: nothing more is saved
        # Why the program can't go on with what is stored. It ends the whole tree, at whichever
        # depth it was found: as a child's failure an ``on_error`` could tolerate it, and it would
        # be recorded as a result. See test_a_conflict_inside_of_a_child_refuses_the_run.
        self._refusal: RunConflict | None = None
        self.forks_at: int | None = None
        """The number of the root run's last update before the step that it has gone on with."""
        self._claimed: list[_Claim] = []

    def know_all(self, stores: Iterable[Store]) -> None:
        """Hear that descendants are kept in ``stores``, maybe; again is no error."""
        for store in stores:
            is_known = any(one is store for one in self.stores)
            if not is_known and not isinstance(store, NullStore):
                self.stores.append(store)

    def forget(self) -> None:
        """Let go of what ended it, which is being raised: its traceback leads back to here."""
        self._failure = self._refusal = None
        self.hooks.failures.clear()

    @property
    def failure(self) -> ShoalError | None:
        """What ends it: of a save, a guarding hook, a changed program; None if nothing does."""
        return first_of(self._failure, self._refusal, *self.hooks.failures)

    def refuse(self, error: RunConflict) -> RunConflict:
        """End it with ``error``, which the caller raises: the program can't go on with the run."""
        self._refusal = first_of(self._refusal, error)
        return error

    @property
    def is_doomed(self) -> bool:
        """Whether a save or a guarding hook failed, or the run is refused, so that it will end."""
        return self.failure is not None

    def ended_by(self, error: BaseException) -> bool:
        """Tell whether ``error`` ends the execution, and is no failure of the run it came out of.

        That is what became of the store or of a guarding hook, or the refusal of a changed program;
        no ``on_error`` tolerates it.
        """
        ends = (self._failure, self._refusal, *self.hooks.failures)
        return any(error is one for one in ends)

    async def save(self, batch: Batch, store: Store) -> None:
        """Have ``store`` keep ``batch``.

        Once a save has failed, each further one fails with what that one has failed with.

        Raises:
            NotData: Something in it can't be kept, and none of it is. That ends nothing here: it is
                a failure of the step that made it.
            UpdateTooLarge: The same, for it is too large.
            StoreFailed: The store raised; the batch is not kept.
            CommitInDoubt: It did not acknowledge in time; whether the batch is kept is unknown.
            LeaseLost: Another execution has the run; the batch is not kept.
        """
        if self._failure is not None:
            raise self._failure
        pending: Awaitable[None] | None = None
        try:
            pending = store.save(batch)
            self.saves_wait = pending is not None
            if pending is None:
                return
            with move_on_after(self.services.commit_deadline, shield=True):
                await self._acknowledged(pending, batch)
                return
        except (CommitInDoubt, LeaseLost, StoreFailed) as error:
            note(
                error,
                f"shoal: at a save of run {batch.path.id}, which stops at its last saved state",
            )
            raise self._first(error) from error.__cause__
        except Exception as error:
            if pending is None and isinstance(error, NotData | UpdateTooLarge):
                raise  # refused at once: nothing is wrong with the store
            why = f"{brief(error)}; the run stops at its last saved state"
            msg = f"the store could not keep a save of run {batch.path.id}: {why}"
            raise self._first(StoreFailed(msg)) from error
        why = f"did not acknowledge it within {self.services.commit_deadline:g} s"
        raise self._first(_in_doubt(batch, why))

    async def claim(self, store: Store, run_id: str) -> bool:
        """Have the root run in ``store``; again is no error. Can't be cancelled.

        Whoever needs the store while it is asked waits for the answer, too: what it saved without
        the claim would be refused, as if another execution had the run (see
        test_a_claim_that_is_never_answered_is_everybodys).

        Returns whether the execution that had it before has died.

        Raises:
            RunClaimed: Another execution has it.
            StoreFailed: The store raised, or did not answer in time.
        """
        claim = next((claim for claim in self._claimed if claim.store is store), None)
        while claim is not None and claim.answered is not None:
            with CancelScope(shield=True):
                await claim.answered.wait()
        if claim is None:
            claim = _Claim(store, run_id)
            self._claimed.append(claim)  # also where that is not known for certain
        elif claim.is_had:
            return False
        elif self._failure is not None:
            raise self._failure
        # else whoever has asked was cancelled natively, which no shield holds off
        claim.answered = Event()
        has_died: bool | None = False
        try:
            with CancelScope(shield=True):
                has_died = await self.ask(store.claim(run_id, self.holder), f"run {run_id}")
                claim.is_had = True
        finally:
            answered, claim.answered = claim.answered, None
            answered.set()
        return bool(has_died)

    async def release(self) -> None:
        """Give back what was claimed; a store that can't will find out by itself.

        All stores together are waited for ``GIVING_BACK`` seconds at most: the run has ended, and
        its caller may have a deadline. Each store is told, also if a native cancellation, which no
        shield holds off, interrupts the wait for another one.

        Raises:
            BaseException: Such an interruption, and nothing else.
        """
        await self._release_by(current_time() + min(GIVING_BACK, self.services.commit_deadline))

    async def _release_by(self, until: float) -> None:
        try:
            while self._claimed:
                claim = self._claimed.pop()
                store, run_id = claim.store, claim.run_id
                scope = CancelScope(deadline=until, shield=True)
                try:
                    with scope:
                        await shielded_wait(store.release(run_id, self.holder))
                except BaseException as error:
                    if as_failure(error) is None:
                        raise
                    logger.exception("run %s could not be given back to its store", run_id)
                if scope.cancelled_caught:
                    logger.error(
                        "run %s could not be given back to its store in time; if the store doesn't "
                        "do it later, the claim ends with its lease",
                        run_id,
                    )
        finally:
            if self._claimed:
                await self._release_by(until)

    async def ask(
        self, pending: Awaitable[T], what: str, passes: tuple[type[Exception], ...] = ()
    ) -> T:
        """Await what a store is asked about what it has kept. May be cancelled, natively too.

        Args:
            pending: The store's answer.
            what: Says what was asked, for the error: "it could not be asked for ...".
            passes: What it may raise that ends nothing here.

        Raises:
            NotDecodable: What it has kept can't be read; the message says what to do.
            StoreFailed: The store raised, or did not answer in time.
        """
        deadline = self.services.commit_deadline
        scope = CancelScope(deadline=current_time() + deadline)
        native_cancels = self.services.native_cancels()
        before = native_cancels() - is_natively_cancelled()
        try:
            with scope:
                return await pending
            raise TimeoutError
        except BaseException as error:
            failure = as_failure(error)
            if failure is None or isinstance(failure, passes):
                raise
            if not isinstance(error, Exception) and native_cancels() > before:
                raise  # of the caller's task, or of an action's: nothing of the store's
            if isinstance(failure, NotDecodable):
                note(failure, f"shoal: the store was asked for {what}")
            if isinstance(failure, RunClaimed | LeaseLost | NotDecodable | StoreFailed):
                raise self._first(failure) from failure.__cause__
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
            # user code cancelled the task it ran in, which is ours
            raise _in_doubt(batch, "was interrupted meanwhile") from failure

    def _first(self, failure: ShoalError) -> ShoalError:
        """Keep the first failure: it ends the execution, however many saves were under way."""
        if self._failure is None:
            self._failure, self.unsaved = failure, True
        return self._failure


@final
class _Claim:
    """A root run in a store, which was asked for it."""

    __slots__ = ("answered", "is_had", "run_id", "store")

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.run_id = run_id
        self.answered: Event | None = None
        """Set when the store has answered; None while nobody asks."""
        self.is_had = False


def _in_doubt(batch: Batch, why: str) -> CommitInDoubt:
    return CommitInDoubt(
        f"whether a save of run {batch.path.id} is kept is unknown: the store {why}; "
        f"the run stops, and learns from the store what happened when it is resumed"
    )
