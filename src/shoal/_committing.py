"""The one door through which the state of a run changes, and through which children's ends go.

Imports the telling and the ending of a run.

Invariants:
- One door. Every change of a run's state goes through ``Committer.commit``: save, make it the
  state, publish. Nobody sees a state that isn't saved. Nothing in it can be cancelled: what waits
  there is shielded, so a commit happens as a whole or not at all.
- A child's last change is saved by the parent's commit that applies it, not by the child; unless it
  has a store of its own, which then has its end first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress

from ._cancel import ki_protected
from ._ending import Ender
from ._errors import HookFailed, NotData, SecretLeaked, UpdateTooLarge
from ._events import Decision, Status, Update
from ._history import Playback, QuestionAnswered, QuestionAsked, Rewound, StepBegun
from ._state import NO_CHANGE, Change, Drop, Set
from ._store import Batch, Beginning, NullStore, SavedRun
from ._telling import Teller, is_listening
from ._unended import end_unended, may_have_children


class Committer(Ender, Teller):
    """The part of a run that commits."""

    __slots__ = ()
    initial: Mapping[str, object]
    packed: object
    head: tuple[int, Mapping[str, object]]

    @property
    @abstractmethod
    def digest(self) -> str:
        """A hash of what a child works on; see ``SavedRun``."""

    @property
    @abstractmethod
    def playback(self) -> Playback | None:
        """What an earlier execution has done of the step under way; None if nothing."""

    @abstractmethod
    def final_data(self) -> Mapping[str, object]:
        """Return the fields of its state as the last step left it."""

    @property
    @abstractmethod
    def crashes(self) -> int:
        """Executions that have died while it was at work at its step; see ``SavedRun``."""

    @ki_protected
    async def commit(
        self,
        updates: Sequence[Update],
        data: Mapping[str, object],
        *,
        applied: Sequence[Committer] = (),
        unapplied: Sequence[Committer] = (),
        step_completed: str | None = None,
        decision: Decision | None = None,
        ended: Status | None = None,
        begun: Beginning | None = None,
        rewound: Rewound | None = None,
        afresh: bool = False,
        questions: Sequence[QuestionAsked | QuestionAnswered] = (),
        step_begun: StepBegun | None = None,
    ) -> None:
        """Save ``updates``, make ``data`` the run's state, and publish them one by one.

        Not cancelled by anything: what it waits for is shielded. Once a save has failed, nothing is
        saved or published here any more; ends that are owed to hooks are, by ``end_unapplied``.

        Args:
            updates: Numbered on from ``number``.
            data: The fields of the state after the last of them.
            applied: Children that the updates apply, one by one.
            unapplied: Children whose end is saved and told without changing the state.
            step_completed: The step that is completed with this.
            decision: How the last of the updates decides a race.
            ended: How the run ends with this.
            begun: What a root run starts from, in its first commit.
            rewound: Where it goes back to before the updates.
            afresh: Whether what was kept of it before counts no more.
            questions: What it asks with this, or what was answered.
            step_begun: What the fan-out declares that makes its first commit in this execution.

        Raises:
            NotData: Something of it can't be kept; nothing changed here. The step fails with that.
            UpdateTooLarge: The same, for it is too large.
            SecretLeaked: The same, for it holds what is secret.
            StoreFailed: The store raised; nothing changed here.
            CommitInDoubt: The store did not acknowledge in time; nothing changed here.
            HookFailed: A guarding hook raised; everything is saved, and everybody else was told.
        """
        setting = self.setting
        number, execution = self.head[0], setting.execution
        if setting.secrets.names:
            for update in updates:
                what = f"what step {update.step!r} of run {self.path.id} does to the state"
                self.refuse_secrets((update.operations, update.discovered), what)
            self.refuse_secrets(questions, f"a question of run {self.path.id}, or an answer,")
        gathered: list[Committer] = []
        for child in unapplied:
            if (
                child.resume is not None and child.resume.is_afresh
            ):  # its record is about to say what it would have worked on
                await child.be_forgotten()
            if child.setting.is_forgotten and child.status == "succeeded":
                child.gather()
                gathered.append(child)
        if execution.is_resumed:
            for child in (*unapplied, *applied):
                if child.status in ("failed", "cancelled"):
                    await child.end_below()
        batch = Batch(
            self,
            updates,
            applied,
            unapplied,
            step_completed,
            decision,
            ended,
            number,
            begun,
            rewound,
            afresh,
            execution.holder,
            questions,
            step_begun,
        )
        await execution.save(batch, setting.store)
        self.head = (number + len(updates), data)
        for child in gathered:
            # Its steps were told when they were completed.
            child.head, child.pending = (1, child.final_data()), NO_CHANGE
        if setting.hooks.listening or is_listening(applied) or is_listening(unapplied):
            await self._publish(updates, applied, unapplied)

    def commit_questions(self, questions: Sequence[QuestionAsked]) -> Awaitable[None]:
        """Save what it asks; see ``Halter``."""
        return self.commit((), self.head[1], questions=questions)

    @ki_protected
    async def note_ends(self, children: Sequence[SavedRun]) -> None:
        """Save how children ended that this execution has not started. No hook receives that.

        An earlier execution has published their starts, and this one publishes ends only of those
        that it has started itself.

        Raises:
            ShoalError: As ``commit``.
        """
        execution = self.setting.execution
        batch = Batch(self, unapplied=children, before=self.head[0], holder=execution.holder)
        await execution.save(batch, self.setting.store)

    async def end_unapplied(self, children: Sequence[Committer]) -> None:
        """Save and publish how children ended that no update applies.

        What can't be saved is published all the same: it has not ended well, for everybody else.

        Raises:
            ShoalError: As ``commit``, but nothing where a save has failed before.
        """
        if self.setting.execution.unsaved:
            await self._lose(children)
            return
        try:
            await self.commit((), self.head[1], unapplied=children)
        except HookFailed:
            raise  # they are saved, and everybody was told
        except Exception:
            with suppress(HookFailed):  # the save that failed comes first
                await self._lose(children)
            raise

    @ki_protected
    async def _lose(self, children: Sequence[Committer]) -> None:
        for child in children:
            child.lose()
        await self._publish((), (), children)

    def gather(self) -> None:
        """Have all that a child has written saved with its end, since nothing else is kept of it.

        It is Done, and its parent doesn't apply it now: whoever applies it later, or is handed its
        outcome once more, finds its state there.
        """
        first, final = self.initial, self.final_data()
        changed = {name: final[name] for name in final if final[name] is not first.get(name, self)}
        dropped = tuple(name for name in first if name not in final)
        operations = (*(Set(name, changed[name]) for name in changed), *map(Drop, dropped))
        setting, head = self.setting, self.head
        # As its only update, since those before it are kept nowhere.
        self.head, self.pending = (0, first), Change(operations, changed, dropped)
        try:
            if setting.secrets.names:
                self.refuse_secrets(operations, "what a child has written")
            self.packed = setting.keeper.pack(self)
        except (NotData, UpdateTooLarge, SecretLeaked):
            # Its earlier steps may write what no store takes. Its value was packed before.
            self.head, self.pending, self.packed = head, NO_CHANGE, None

    async def end_below(self) -> None:
        """Record ends of what an earlier execution has left under way below it; it has failed.

        Or it was cancelled. In either case it may not have come to all of that.

        Raises:
            ShoalError: As ``commit``.
        """
        setting, played = self.setting, self.playback
        execution = setting.execution
        if execution.unsaved or execution.is_interrupted or isinstance(setting.store, NullStore):
            return
        if not may_have_children(setting.graph):
            return
        reason = self.reason if self.status == "cancelled" else "its parent failed"
        decided = None if played is None else played.decided
        await end_unended(execution, setting.store, self, decided, reason)

    async def be_forgotten(self) -> None:
        """Have what was kept of a child and its descendants count no more."""
        await self.commit((), self.head[1], afresh=True)
        if self.resume is not None:
            self.resume.is_afresh = False

    async def rerun(self, step: str, by: Teller) -> None:
        """Have what was kept of the run count no more, and tell so; ``by`` is its parent."""
        await self.be_forgotten()
        await by.tell_child_rerun(self, step)
