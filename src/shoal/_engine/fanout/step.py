"""One execution of a parallel act by one run: open it, apply batches, decide, end.

Invariants:
- The parent's task saves a batch of outcomes at once. Ends without an update are saved too.
- A decision is saved together with the update of the child that decided. Then the other children
  are cancelled, once, and awaited to the end of their cleanup. Then their ends are recorded.
- A child starts from the parent's state at the beginning of the step, narrowed to its graph.
- A halted child holds no place, and neither wins nor fails. If only halted children are left, the
  step halts if it needs one of them, and cancels them otherwise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import final

from shoal._engine.child_time import at_rest, time_of
from shoal._engine.commit import Write, commit, is_silent
from shoal._engine.questions import halt_for, is_answered
from shoal._engine.run import Run
from shoal._errors.exceptions import HookFailed, InvalidState, brief
from shoal._events.events import ChildName, Decision, Done, Failed, Outcome, Status, Update
from shoal._graph.parallel import Parallel
from shoal._graph.policy import Tolerate
from shoal._state.state import NO_CHANGE, Change, Set, make_state
from shoal.stores._history import StepBegun
from shoal.stores._protocol import ChildRecord, NullStore

from .batch import BatchJoin
from .children import check_depth, children_of, is_revisited
from .finish import failure_group, record_unapplied, wind_up
from .group import ChildTaskGroup
from .leader import Leader
from .ledger import Ledger, new_ledger
from .losers import only
from .race import Race, make_race
from .recorded import RecordedChildren
from .resting import RestingChildren
from .rounds import Rounds
from .source import ElementSource
from .stagger import StaggeredSource, stagger
from .step_resume import StepResume, resume_of
from .step_source import StepSources, goes_ahead
from .takeup import refuse_lost, refuse_other_decision


@final
class FanOutStep:
    """One execution of a parallel act by one run.

    If it fails and its parent is retried, the same object is executed again: Done children and
    their updates stay, the others continue where they stood. That holds wherever it failed, also
    before its first child, or in a user's function.
    """

    def __init__(self, act: Parallel, run: Run) -> None:
        """Prepare the step: all children start from the state that the parent has now."""
        check_depth(run, act.name)
        self.act = act
        self.parent = run
        self._store, hooks = children_of(run, act.store, act.hooks)
        # If an earlier execution has begun the step, all children start from the state of then.
        begun = self._begun = run.playback
        self.data: Mapping[str, object] = run.data if begun is None else begun.began.data
        self._sources = StepSources(
            act, run, self.data, store=self._store, hooks=hooks, on_item=self._on_item
        )
        self.join = self._sources.join
        self._resume: StepResume | None = None  # None: the store has nothing of this visit
        self._race: Race | None = None  # None: all children are awaited; anew for each round
        # Set only after the save that has it; None again where a race is run again.
        self.decision: Decision | None = None
        self._leader = Leader(run, act.name) if self.join.until.by_item else None
        self.ledger: Ledger = new_ledger(run, act.name, run.visit(act.name), self._store)
        self.source: ElementSource | None = None  # of the last round; None before the first
        self._declares: StepBegun | None = None  # saved with the first save, then None
        self._staggered: StaggeredSource | None = None
        self._rounds = Rounds()
        self._is_recalled = False  # the store was asked for earlier executions; never unset
        self._is_over = False  # no child runs any more, only the change is missing; never unset
        self._has_opened = False  # the collections are started; never unset
        self._done: Mapping[object, object] = {}  # results that were there from the start
        self._is_failing = False  # a failure isn't tolerated; only ``_go_on`` unsets it
        # Set by each attempt if there is a timeout, and shared by rounds; less the time in which
        # the execution was held.
        self._ends_at = 0.0
        self._unsaved: Sequence[Run] = ()  # the batch whose save failed, recorded at the end
        self._resting = RestingChildren()
        self._unfinished: list[Run] = []  # ended without an update; another attempt continues them

    def _make_source(self) -> ElementSource:
        source = self._sources.make(self.recorded_children)
        self.join = self._sources.join  # its shape depends on the acts that a function chooses
        return source

    @property
    def recorded_children(self) -> RecordedChildren | None:
        """The children that earlier executions or attempts have recorded; None: none."""
        return None if self._resume is None else self._resume.recorded_children

    async def execute(self) -> Change:
        """Run all children, and return the change that completes the step."""
        # None in the first attempt, and after attempts in which no source could be made.
        former = self.source
        if not self._is_recalled:
            self._race = make_race(self.act.name, self.join.until)
            resume = self._resume = await resume_of(
                self.parent,
                self.join,
                self._store,
                self._begun,
                ledger=self.ledger,
                race=self._race,
            )
            # Only now: if the store could not be read, the next attempt has to read it.
            self._is_recalled = True
            if resume is not None:
                await self._take_up_decision(resume)
        if former is not None and self._is_won:
            # The attempt failed after the decision was saved, so only the end is missing, see
            # test_a_race_that_is_decided_stays_decided_when_something_raises_behind_it.
            self.ledger.release_errors()
            await self._clear_up()
            await self._rounds.end_left_behind(
                former, self.parent, self.recorded_children, self.decision, self.ledger
            )
            self._is_over = True
        if not self._is_over:
            if former is not None and self._has_opened and self.join.until.restarts:
                self.ledger.settle()
                self._begin_again(self.ledger, among_all=True)
                former = None
            await self._live_round(former, begins=True)
            while self._runs_again():
                self._begin_again(self.ledger)
                await self._live_round()
            self._is_over = True
        # Not sooner, because an attempt may make a new ledger.
        self._count_decision()
        return self.act._finished(make_state(self.parent.data, self.join.access))

    def _count_decision(self) -> None:
        self.ledger.winner = None if self.decision is None else self.decision.winner

    def _live_round(
        self, former: ElementSource | None = None, *, begins: bool = False
    ) -> Awaitable[None]:
        """Run one round of children.

        Args:
            former: The source of an attempt that failed: the round continues its children.
            begins: Whether an attempt begins with this round, and its timeout too.
        """
        try:
            source = self._make_source()
        except BaseException:
            # The next attempt needs the children that are there already, see
            # test_what_is_applied_stays_when_over_raises_in_another_attempt.
            self.parent.retain(self.act.name, self)
            raise
        return self._live_from(source, former, begins=begins)

    async def _live_from(
        self, source: ElementSource, former: ElementSource | None, *, begins: bool
    ) -> None:
        act, clock = self.act, self.parent.config.services.clock
        held = self.parent.config.execution.hold
        self.source = source
        # The next attempt goes on from this source, wherever this one fails.
        self._rounds.prepare(source)
        lacking = 1 if self._race is None else self._race.lacking
        services, definition = self.parent.config.services, act.definition
        # A decided race runs only its winner, at once: see test_a_decided_race_is_not_staggered.
        how = act.stagger if self.decision is None else None
        staggered = self._staggered = stagger(how, source, services, definition, lacking)
        if act.timeout is not None and begins:
            # Not for further rounds: they share the time of their attempt.
            self._ends_at = clock() + act.timeout - held.seconds()
        group = self._group = ChildTaskGroup(
            self.parent,
            source if staggered is None else staggered,
            act.limits,
            limit=self._sources.room_of(source),
            owner=act.definition,
            name=act.name,
            timeout=act.timeout,
            ends_at=None if act.timeout is None else self._ends_at + held.seconds(),
            decisive=self._decisive,
            title=act.title,
            ahead=act.ahead,
            each=act.each,
            gives_places_early=self._resume is None
            and self._race is None
            and goes_ahead(self.parent, act.limits, self.join, source),
            is_race=self._race is not None,
            grows=self.join.grow is not None,
        )
        try:
            if not self._has_opened:
                await self._open()
                self._has_opened = True
            elif former is not None:
                self._go_on(former)
            self._leave_out_done()
            if self._leader is not None:
                await self._leader.publish(self._race)
            if not self._is_lost(0):
                # If it can't be won, no child starts; see
                # test_too_few_elements_are_known_before_anything_starts.
                self._decide_by_recorded()
                await group.run(
                    self._apply, self.ledger, halted=self._resting, on_answer=self._on_answer
                )
                await self._record_unapplied(group)
            # After the ends that came too late are counted: a failure among them may fail the step.
            self._judge()
            if not self._runs_again():
                await self._clear_up()
                await self._rounds.end_left_behind(
                    self.source, self.parent, self.recorded_children, self.decision, self.ledger
                )
                # Last, since `_clear_up` removes results of elements that are gone.
                refuse_lost(self.parent, self.join, self.ledger, self.recorded_children)
        except BaseException as error:
            subject = f"fan-out {act.name!r} of run {self.parent.path.id}"
            # The ends first: the next attempt continues the children that they leave unfinished.
            await wind_up(self._end(group), error, subject, "fan-out")
            self.parent.retain(act.name, self)
            # No attempt follows, and the frames of these errors lead back here.
            if self._race is not None and not self.parent.config.is_resumable:
                self._race.forget()
                self._rounds.forget()
            raise
        finally:
            if staggered is not None:
                # On every way out: other races wait for the permits that this one has not used.
                staggered.close()
            self.ledger.dropped = source.dropped
            self.ledger.left = source.known
            # Breaks a cycle: errors' frames refer to it.
            source.on_kept = source.on_done = source.on_taken_again = None
        source.close()

    @property
    def _decisive(self) -> Collection[Status | None]:
        """The statuses of ends that may decide that the other children are cancelled."""
        if self._race is not None:
            # All but "halted", which is no end and decides nothing.
            return ("succeeded", "failed", "cancelled", None)
        return () if self.join.on_error in ("collect", "ignore") else ("failed",)

    def _go_on(self, former: ElementSource) -> None:
        """Continue the children of the attempt that failed; its source is ``former``."""
        assert self.source is not None
        # Taken out: each of these children ends again, and may be unfinished again then.
        unfinished, self._unfinished = self._unfinished, []
        self._is_failing = False
        self._resting.clear()
        name, ledger = self.act.name, self.ledger.without(unfinished)
        self.ledger = new_ledger(self.parent, name, self.parent.visit(name), self._store, ledger)
        if self.join.until.by_item:  # no child leads: the race is run again
            self._race, self.decision = make_race(name, self.join.until), None
        elif self._race is not None:
            self._race.reopen()
        for child in unfinished:
            child.reopen()
        # Last: it puts children that are Done in front, which `reopen` has found out.
        self.source.resume(former, unfinished)

    async def _end(self, group: ChildTaskGroup) -> None:
        assert self.source is not None
        try:
            await self._record_unapplied(group)
        finally:
            self.source.close()

    # -- decisions of earlier executions and rounds ---------------------------------------------

    async def _take_up_decision(self, resume: StepResume) -> None:
        """Take over the decision of an earlier execution, if there is one."""
        # Sets `decision` as well, also where the winner still has to run.
        is_settled = self._is_settled(resume)
        decision = self.decision
        if decision is None:
            return
        ledger = self.ledger
        room_of = self._sources.room_of
        # Before anything runs: whatever happens now, a decided race has losers with an end.
        await resume.end_losers(decision, ledger, make=self._make_source, room_of=room_of)
        if is_settled and self.decision is not None:
            # Otherwise `_open` does that, and a step that is over is not opened.
            resume.refuse_changed(self._sources.declared(), self.join)
            resume.count_rest(self.decision, self.ledger)
            self._is_over = True

    def _is_settled(self, resume: StepResume) -> bool:
        """Take over the earlier decision; return whether no child has to run any more."""
        begun = resume.begun
        if begun is None or begun.decision is None:
            return False
        decision = begun.decision
        refuse_other_decision(self.parent, self.join, decision, begun)
        until, winner, children = self.join.until, decision.winner, resume.recorded_children
        record = None if children is None else children.get(winner)
        applied = children is not None and record is not None and children.is_applied(record)
        if until.by_item and not applied:
            if until.restarts and record is not None and record.status == "failed":
                self.decision = decision
                self._begin_again(())
                return False
            # Only the winner runs, from its start unless it has ended or waits for an answer.
            self._race = make_race(self.act.name, until, winner)
            goes_on = record is not None and record.status in ("succeeded", "halted")
            self._rounds.pick = partial(only, winner, anew=not goes_on)
            self.decision = decision
            return False
        self.decision = decision
        return True

    def _runs_again(self) -> bool:
        """Whether the race needs another round, without the contestants that have failed.

        It does if its winner has failed. It also does if no others are left but those that failed
        in an earlier execution, because a resumed step reruns them, here as elsewhere.
        """
        if self._race is None or not self.join.until.restarts:
            return False
        if self._race.is_broken:
            return True
        return self._rounds.may_readmit and not self._is_won and self._is_lost(0)

    def _begin_again(self, ended: Iterable[Outcome], *, among_all: bool = False) -> None:
        """Prepare to run a race from its start; see ``Rounds.begin_again``.

        Recorded children that have not come up count as ended, except halted ones: these stay
        halted, or continue with their answers, until a round of this execution starts them.
        """
        resume, decision = self._resume, self.decision
        rest = () if resume is None or decision is None else resume.rest(decision)
        before = [outcome for record, outcome in rest if record.status != "halted"]
        ended = [*before, *ended]
        out = self._rounds.begin_again(
            ended, [*self._resting], self._race, self.source, among_all=among_all
        )
        self._rounds.failed_before(before)
        name, visit = self.act.name, self.parent.visit(self.act.name)
        self.ledger = new_ledger(self.parent, name, visit, self._store)
        for outcome in out:
            self.ledger.add(outcome)
            if self.recorded_children is not None:
                # It is counted with the ledger from now on, and must not be counted as a record
                # too.
                self.recorded_children.drop(ChildName(outcome.act, outcome.key))
        self._race, self.decision = make_race(self.act.name, self.join.until), None
        self._unfinished = []
        self._resting.clear()

    # -- opening --------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Create the collections; elements whose results are there already get no child."""
        assert self.source is not None
        run, name, resume = self.parent, self.act.name, self._resume
        schema = run.config.schema
        why = "" if schema is None else self.join.misfit(schema)
        if why:  # known only now, because a function chose the acts
            msg = f"fan-out {name!r} can't work on {run.config.graph.name!r}: {why}"
            raise InvalidState(msg)
        # A further visit begins anew, unless `again=` says otherwise: what the visit before has put
        # there is no reason to skip.
        first_visit = run.visit(name) == 0 and not is_revisited(run)
        values, self._done = self.join.collections(self.data, first_visit=first_visit)
        if not isinstance(run.config.store, NullStore):
            if resume is None:
                self._declares = StepBegun(self.join.name, self._sources.declared())
            else:
                declared = self._sources.declared()
                self._declares = resume.refuse_changed(declared, self.join, self.decision)
                if self.decision is None:
                    await resume.foresee(self.source)
        if resume is not None and resume.begun is not None and resume.begun.under_way:
            values = resume.reopen(resume.begun, self.source, self.join)
        await self._set(values)

    async def _set(self, values: Mapping[str, object]) -> None:
        """Set fields of the parent's state, by an update of their own."""
        run = self.parent
        if values and is_silent(run):  # nothing would save or publish it
            run.head = run.number + 1, {**run.data, **values}
        elif values:
            operations = tuple(Set(field, value) for field, value in values.items())
            update = Update(run.number + 1, self.act.name, operations)
            declares, self._declares = self._declares, None
            await commit(run, Write((update,), {**run.data, **values}, step_begun=declares))

    def _leave_out_done(self) -> None:
        assert self.source is not None
        self.source.on_kept, self.source.on_done = self._keep, self.ledger.count_done
        self.source.on_taken_again = self._on_taken_again
        if self._done:
            for kind in self.source.kinds:
                # For each act by itself, because a collection may hold results of some acts only.
                kind.done = self.join.done_keys(self._done, kind.config.act)

    def _on_taken_again(self, child: Run) -> None:
        self._resting.begin_again(child, self.ledger)

    def _keep(self, record: ChildRecord) -> None:
        """Count a child that an earlier execution has completed and applied."""
        assert self._resume is not None, "it has the record"
        self._resume.count_kept(record, self.ledger, self._race)

    def _decide_by_recorded(self) -> None:
        """Decide without another child, if results accepted earlier are enough by now."""
        race = self._race
        last = None if self._resume is None else self._resume.last_accepted
        # There are enough without a decision only if another `until=` has wanted more. A fan-out
        # over elements refuses that in `foresee`; a task can't be made again there, so its step
        # goes on.
        if race is not None and last and not self.decision and race.lacking <= 0:
            self._group.stop_starting()
            # In the parent's task, as every save of the parent.
            self._group.run_in_parent(partial(self._decide, last))

    async def _decide(self, last: Done) -> str | None:
        """Save that a recorded result has decided; return why the others are cancelled."""
        if self.decision is not None or self._race is None:
            return None
        self._group.stop_starting()
        run, chosen, field = self.parent, self._race.chosen, self.join.into
        decision = self._race.decided_by(last)
        change = NO_CHANGE
        if chosen is not None and field is not None and self.join.shape == "one":
            change = Change(None, {field: chosen.value})
            if run.config.schema is not None:
                subject = f"key {brief(chosen.key)} of fan-out {self.act.name!r}"
                change = run.config.schema.checked(change, run.data, subject)
        update = Update(run.number + 1, self.act.name, change.operations)
        updates = (update,) if change.values else ()
        await commit(run, Write(updates, change.applied_to(run.data), decision=decision))
        self.decision = decision
        self._count_decision()
        self._group.scope.winner = decision.winner
        return decision.reason

    # -- applying -------------------------------------------------------------------------------

    async def _apply(self, batch: list[Run]) -> str | None:
        """Commit a batch of ends; return why the other children are cancelled, or None."""
        assert self.source is not None
        recorded_children = self.recorded_children
        if self._resume is not None:
            # Before the batch is judged, so that no result of an earlier execution counts beside
            # its new one; see test_what_was_accepted_before_does_not_count_where_it_runs_anew.
            self._resume.withdraw_reruns(self._race)
        done_before = 0 if recorded_children is None else recorded_children.done_left
        reruns: set[ChildName] = set() if recorded_children is None else recorded_children.reruns
        draft = BatchJoin(
            self.join,
            self.parent,
            self.source.growth,
            self.ledger,
            self._race,
            done_before=done_before,
            reruns=reruns,
        )
        # Returned and not raised: what was added before it is saved first.
        error = self.parent.config.execution.reduce(draft.add_all, batch)
        self._is_failing = self._is_failing or draft.is_failing
        # Before the first await: children that aren't needed must not start during the save.
        if draft.decision is not None or draft.is_failing:
            self._group.stop_starting()
        else:
            self._group.resume_starting()
        try:
            await draft.commit(self._declares)
            self._declares = None
        except HookFailed:
            raise  # the batch is saved and published
        except Exception:  # no KeyboardInterrupt: it is held back until a commit ends
            draft.withdraw()
            self._unsaved = batch
            raise
        if draft.decision is not None:
            self.decision = draft.decision
            self._count_decision()
        if reruns:
            new = (child for child in draft.applied if child.status == "succeeded")
            # Only after the save: until then the old results may be what is in the state.
            reruns.difference_update(ChildName(one.config.act, one.key) for one in new)
        # After the save, so that no child starts before the update that found it; and before
        # `_is_lost`, which counts what may still come.
        self.source.admit(draft.admitted)
        # Before `_is_lost`, see test_children_that_halt_at_once_may_still_win_a_race.
        halted = [child for child in batch if child.status == "halted"]
        self._resting.waiting += halted
        # The answer may have come while the child was halting.
        if halted and any(is_answered(child) for child in halted):
            self._group.look_for_answers()
        # The group counts the batch off when this has returned.
        left = self._group.under_way - len(batch)
        if self._race is not None:
            self._race.on_ended(batch)
            if self._leader is not None:
                await self._leader.publish(self._race)
        self._notify_stagger(batch, left)
        if draft.decision is not None:
            self._group.scope.winner = draft.decision.winner
        reason = draft.reason_to_stop(is_lost=self._is_lost(left))
        # ``fatal`` are the failures that are raised. All others are tolerated, but for those behind
        # a child that could not be applied (``missed``): these were never judged.
        if error is not None:  # before the ledger releases the errors of failed children
            draft.note_missed(error)
        fatal, is_open = set(map(id, (*draft.failures, *draft.missed))), self._is_open
        if draft.is_plain:
            self.ledger.done += len(batch)  # as `enter_all` does, which would look at each
        else:
            self.ledger.enter_all(batch, raised=None if is_open else fatal)
        if self.parent.config.is_resumable:
            self._unfinished += [
                child
                for child in draft.unapplied
                if child.status != "failed" or is_open or id(child) in fatal
            ]
        try:
            if error is not None:
                raise error
        finally:
            del error  # breaks the traceback cycle
        return reason

    async def _on_answer(self) -> None:
        """Let halted children go on in this execution, if all their questions are answered.

        Not in a race that its first item has decided: the others have lost, and the items of the
        leader went out already.
        """
        # Nothing else is to be asked: any other race that is decided takes no errands, nor does a
        # step that fails.
        if self.decision is not None:
            return
        assert self.source is not None
        answered = self._resting.put_back(self._staggered or self.source)
        self._unfinished = [child for child in self._unfinished if child not in answered]
        self._group.engage()

    def _notify_stagger(self, batch: Sequence[Run], left: int) -> None:
        if self._staggered is None:
            return
        if not self.join.until.by_item:  # else ``learn_first`` is given the time to the first item
            self._staggered.learn(batch)
        if self.decision is None:
            lacking = 1 if self._race is None else self._race.lacking
            self._staggered.on_batch(batch, left, lacking)

    def _on_item(self, run: Run, item: object) -> None:
        """Let the parent's task decide by ``item``, which the task of ``run`` emits here."""
        if self._race is not None and self._race.on_item(run, item):
            self._group.run_in_parent(self._decide_by_item)

    async def _decide_by_item(self) -> str | None:
        """Save that the first item has decided, then cancel the other children."""
        decided = None if self._race is None else self._race.decide_by_item()
        if decided is None:
            return None
        # The decision is not saved yet: until then the leader may end, and others may emit.
        leader, decision = decided
        self._group.stop_starting()  # before the save, during which others could start
        declares, self._declares = self._declares, None
        await commit(self.parent, Write(decision=decision, step_begun=declares))
        self.decision = decision
        self._count_decision()
        if self._leader is not None:
            await self._leader.publish(self._race)  # before the others are cancelled
        if self._staggered is not None:
            self._staggered.learn_first(leader, self._group.living())
        assert self.source is not None
        # No further element is needed: the group ends as soon as the winner has ended.
        self.source.stop()
        self._group.cancellation.others(leader, decision.reason, decision.winner)
        return None

    @property
    def _is_won(self) -> bool:
        """Whether the step is decided, and the winner's result is here."""
        chosen = None if self._race is None else self._race.chosen
        return self.decision is not None and (chosen is not None or not self.join.until.by_item)

    @property
    def _is_open(self) -> bool:
        """Whether it is a race that may be lost, so that its failures may have to be raised."""
        return self.join.is_race and not self._is_won

    def _is_lost(self, in_flight: int) -> bool:
        """Whether the race can't be won any more, with ``in_flight`` children that may win."""
        if self._race is None or (in_flight and self.join.grow is not None):
            return False
        return self._race.is_lost(in_flight + self._possible())

    def _possible(self) -> float:
        """Count, at most, the children that may still succeed besides those in flight."""
        assert self.source is not None
        return self.source.most() + len(self._resting.waiting)

    # -- ending ---------------------------------------------------------------------------------

    async def _clear_up(self) -> None:
        """Count or remove recorded children of elements that have not come up again."""
        resume, source = self._resume, self.source
        if resume is None or resume.recorded_children is None or source is None:
            return
        gone: list[ChildRecord] = []
        if self.decision is None:
            gone = resume.left_over(self.ledger, self.join)
        else:
            await resume.end_losers(self.decision, self.ledger, room_of=self._sources.room_of)
            resume.count_rest(self.decision, self.ledger)
        # The state first: if the process dies in between, the records still say what has to go.
        await self._set(resume.values_without(gone, self.ledger, self.join))
        await resume.forget(gone, source)

    async def _record_unapplied(self, group: ChildTaskGroup) -> None:
        """Record the ends of children that were cancelled, or ended too late to be applied."""
        late = [*group.inbox, *self._unsaved]
        # Taken out before the save: if that raises, `_end` calls this once more, and each end
        # counts once.
        group.inbox.clear()
        self._unsaved = ()
        lost = self._resting.give_up(self.decision, late, self.ledger)
        late = sorted((*late, *lost), key=lambda child: child.position)
        if not late:
            return
        if self._staggered is not None and not self.join.until.by_item:
            self._staggered.learn(late)
        is_open = self._is_open
        for child in late:
            if child.status == "succeeded":
                child.discard_result()
            elif child.status != "failed" or self.decision is not None:
                pass  # a failure after the decision changes nothing
            elif self.join.on_error == "fail":
                self._is_failing = True
        try:
            await record_unapplied(self.parent, late)
        finally:
            self.ledger.enter_all(late, raised=None if is_open or self._is_failing else ())
            if self.parent.config.is_resumable:
                self._unfinished = [one for one in self._unfinished if one not in lost] + late

    def _judge(self) -> None:
        """Raise the failures if they aren't tolerated or the race is lost; halt for an answer."""
        self.ledger.settle()
        if self._is_won:
            self.ledger.release_errors()
            return
        assert self.source is not None
        runs_again, drained = self._runs_again(), self._group.is_drained
        if runs_again and not drained:
            return
        # A failure that is raised comes before a question, and so does a race that no answer could
        # win; see test_a_race_that_can_not_be_won_any_more_fails_in_spite_of_halted_children.
        if drained and (runs_again or not self.source.dry()):
            if runs_again or not (self._is_failing or self._is_lost(0)):
                self._resting.rest_unstarted(self.ledger)
                self.parent.config.execution.drain.has_cut = True
                halt_for(self.parent, self.act.name, self._resting, self.recorded_children)
        elif self._resting and not self._is_failing and not self._is_lost(0):
            halt_for(self.parent, self.act.name, self._resting)
        if self._race is not None:
            loss = self._race.loss(self.ledger, self.ledger.total, self._possible())
            try:
                if loss is not None:
                    raise loss
            finally:
                del loss  # breaks the traceback cycle
        tolerance, ledger = self.join.on_error, self.ledger
        if isinstance(tolerance, Tolerate) and not self._is_failing:
            # Skipped and cancelled children don't count for a share; see
            # test_skipped_children_count_for_nothing.
            ended = ledger.failed + ledger.done
            if self.recorded_children is not None and not self.join.is_listed:
                ended += self.recorded_children.done_elsewhere()
            self._is_failing = tolerance.is_exceeded(ledger.failed, ended, at_end=True)
        if self._is_failing:
            # Of all batches and in input order, since that is how a ledger is read.
            errors = [outcome.error for outcome in ledger if isinstance(outcome, Failed)]
            raise failure_group(self.act.name, errors)


def fan_out(act: Parallel, run: Run) -> Awaitable[Change]:
    """Execute ``act`` as a step of ``run``, or continue the attempt that failed before."""
    step = run.take_retained(act.name) or FanOutStep(act, run)
    assert isinstance(step, FanOutStep), "nothing else is kept for a parallel act"
    return step.execute() if time_of(run) is None else _execute_at_rest(step, run)


async def _execute_at_rest(step: FanOutStep, run: Run) -> Change:
    with at_rest(run):
        return await step.execute()
