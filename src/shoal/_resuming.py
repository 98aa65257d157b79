"""Where a run goes on that the store knows: after the last step it has completed.

Imports graphs, history and the commits of a run.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ._action import Act
from ._cancel import ki_unprotected
from ._committing import Committer
from ._ending import DONE, LIVE, NEVER_STARTED, SKIPPED, Disposition
from ._errors import RunConflict, fork_advice
from ._events import Done, Status, Update
from ._graph import Graph
from ._history import Entry, Playback, Rewound, play
from ._parts import read_history
from ._ports import Seat, Stake
from ._schema import Schema
from ._state import NO_CHANGE, Change, held
from ._store import ChildRecord, NullStore, Store
from ._trials import PendingQuestions, RetryState, StepCounts


class Resumer(Committer):
    """The part of a run that goes on where its history leads."""

    __slots__ = ()
    initial: Mapping[str, object]
    seat: Seat | None
    stake: Stake | None
    began: bool
    status: Status | None
    error: BaseException | None
    value: object
    elapsed: float
    packed: object
    disposition: Disposition

    @abstractmethod
    def retry_state(self) -> RetryState:
        """Return what it keeps between attempts."""

    @abstractmethod
    def step_counts(self) -> StepCounts:
        """Return which steps it has completed."""

    @abstractmethod
    def begin_attempt(self) -> None:
        """Hear that its current step is tried once more."""

    @property
    def playback(self) -> Playback | None:
        """What an earlier execution has done of the step under way; None if nothing."""
        return None if self.resume is None else self.resume.replayed

    def is_undone(self, number: int) -> bool:
        """Tell whether its update of that number counts no more, since it has gone back."""
        resume = self.resume
        return resume is not None and resume.is_undone is not None and resume.is_undone(number)

    def visit(self, step: str) -> int:
        """Return which visit of ``step`` this is: how often the run has completed it before."""
        return 0 if self.steps is None else self.steps.visits.get(step, 0)

    async def recall(self, store: Store | None = None) -> None:
        """Go to where the history of a child leads.

        If its graph has other ways now, it begins anew: what it has done counts no more.

        Args:
            store: Has it; by default, the one where the child is kept.

        Raises:
            StoreFailed: The store did not say what it has.
        """
        setting = self.setting
        if setting.schema is not None:
            self.fill_model(setting.schema)
        played = play(self.initial, ())

        def take(entries: Sequence[Entry]) -> None:
            for entry in entries:
                played.add(entry)

        kept_in = setting.store if store is None else store
        await read_history(setting.execution, kept_in, self.path, take)
        resume = self.resume_state()
        is_done = resume.record is not None and resume.record.status == "succeeded"
        if not is_done and self._other_way(played) is not None:
            resume.record = None
            await self.be_forgotten()
        else:
            self.go_on_from(played)

    def take_over(self, end: ChildRecord | Done) -> None:
        """Note that it is Done, as ``end`` says, and that nobody has applied it.

        What it has written is in the outcome, or read by ``recall_end`` where it is a record.
        """
        self.disposition = DONE
        self.status, self.value, self.elapsed = "succeeded", end.value, end.elapsed
        if isinstance(end, Done):
            self.head = (0, held(end.state))
            self.pending = NO_CHANGE
        else:
            self.resume_state().record = end
        trials = self.retry_state()
        trials.further = max(0, end.attempts - 1)
        trials.abandoned = end.abandoned

    async def recall_end(self) -> None:
        """Read what a child has written that is Done, and that only has to be applied.

        Of a child that is kept nowhere, its parent's store has what it wrote last.

        Raises:
            StoreFailed: The store did not say what it has.
        """
        setting = self.setting
        await self.recall(setting.keeper if isinstance(setting.store, NullStore) else None)
        self.pending = NO_CHANGE

    def reopen(self) -> None:
        """Go on living, though its end was saved and published: its parent is tried again.

        What is Done stays so, and what is skipped: all that lacks is its parent's update.
        """
        self.seat = self.stake = None  # those were of the group before, which has given them back
        self.used = True
        self._outcome = None
        if self.disposition.is_saved or self.disposition is SKIPPED:
            return
        if self.status == "succeeded":
            self._stay_done()
            return
        if self.disposition is not NEVER_STARTED:
            self.begin_attempt()
        self.disposition = LIVE
        if self.retries is not None and self.retries.lacks_value:
            self.pending = NO_CHANGE
        self.step = None
        self.began = False
        self.status = None
        self.error = None
        self.value = None
        self.begin_asking()
        self.reason = ""
        self.started_at = self.setting.services.clock()

    def _stay_done(self) -> None:
        """Be Done from now on: its end is saved and published, its last update with it."""
        update = self.last_update
        number = self.head[0] if update is None else update.number
        self.head = number, self.final_data()
        self.pending = NO_CHANGE
        self.step = None
        self.began = False
        self.packed = None  # it has the last update in it
        self.disposition = DONE

    def go_on_from(self, played: Playback) -> None:
        """Stand where a history has led to."""
        resume = self.resume_state()
        resume.replayed = played
        resume.is_undone = played.is_undone if played.undone else None
        self.head = (played.number, played.data)
        self.step_counts().visits = dict(played.began.visits)
        if played.asked:
            self.questions = PendingQuestions(dict(played.asked))

    async def rewind(self, rewound: Rewound, back: Change) -> None:
        """Go back into a step that was completed; ``back`` brings the state back as it was."""
        update = Update(self.head[0] + 1, rewound.step, back.operations)
        await self.commit((update,), back.applied_to(self.head[1]), rewound=rewound)

    def following(self, played: Playback) -> Act | None:
        """Return the act that comes next in a history, None at the end.

        It is chosen by the state as it was then: the step under way may have changed it since.

        Raises:
            RunConflict: The graph does not have the step that was completed last, or the one under
                way is not what comes next in it.
        """
        record = None if self.resume is None else self.resume.record
        if record is not None and record.status == "succeeded":
            return None
        if self.setting.parent is None:  # see recall
            self.refuse_other_way(played)
        return self._after(played)

    def refuse_other_way(self, played: Playback) -> None:
        """Refuse to go on with a history that has gone a way that the graph doesn't have.

        Raises:
            RunConflict: Saying where.
        """
        other = self._other_way(played)
        if other is not None:
            why, number = other
            fork = "" if number is None else f", or {fork_advice(self.path.id, number)}"
            msg = f"run {self.path.id} {why}; change the graph back to go on{fork}"
            raise RunConflict(msg)

    def _other_way(self, played: Playback) -> tuple[str, int | None] | None:
        """Say where a history has gone a way that the graph doesn't have; None: it has it.

        With the number of the last update that the graph can begin behind, if there is one.
        """
        graph, before = self.setting.graph, played.first_after
        for step, _, number in played.completed_visits():
            known = graph.find(step) and (before is None or graph.find(before))
            if known and not graph.leads(before, step):
                behind = "to begin with" if before is None else f"behind {before!r}"
                why = f"has completed the step {step!r} {behind}, where {graph.name!r} has others"
                return why, number
            before = step
        if before is not None and graph.find(before) is None:
            return unknown_step(before, graph), played.last_behind(graph.find)
        under_way = played.step_under_way
        if under_way is None:
            return None
        following = self._after(played)
        if following is None or following.name != under_way:
            comes = "nothing" if following is None else f"{following.name!r}"
            why = (
                f"was in the middle of step {under_way!r}, where {comes} comes in {graph.name!r} "
                f"now (if the step was renamed, give it its old name with name=)"
            )
            return why, played.began.number
        return None

    def _after(self, played: Playback) -> Act | None:
        """Return the act behind the step that was completed last."""
        setting, step = self.setting, played.began.step
        if step is None:
            return setting.graph.entry
        act = setting.graph.find(step)
        assert act is not None, "else its way would be another one"
        return act_after(setting.graph, act, played.began.data)

    def fill_model(self, schema: Schema[Any]) -> None:
        """Make the first state of a child that has a model; a root run's was made before."""
        if self.setting.parent is not None:
            data = {name: value for name, value in self.head[1].items() if name in schema.fields}
            self.initial = schema.initial(data, f"the first state of {self.setting.act!r}")
            self.head = (0, self.initial)


def unknown_step(step: str, graph: Graph) -> str:
    """Say that a run has completed a step that a graph doesn't have."""
    return (
        f"has completed the step {step!r}, which {graph.name!r} does not have any more (if it was "
        f"renamed, give it its old name with name=)"
    )


@ki_unprotected
def act_after(graph: Graph, act: Act, data: Mapping[str, object]) -> Act | None:
    """Find what follows ``act`` by the conditions on edges, which are user code."""
    return graph.after(act, data)
