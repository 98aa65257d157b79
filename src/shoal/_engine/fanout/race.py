"""Races: decide which results count in a fan-out that needn't await all, and when it is decided.

The children of a race are called contestants.

Invariants:
- A race judges children one at a time, in the order in which the parent takes them, and none after
  the decision. So at most one child decides, and no more are accepted than were wanted.
- An error that ``accept``, ``by`` or the comparison of two values raises refuses that one child,
  and does nothing else.
- A race is known to be lost as soon as it can't be decided any more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast, final

from shoal._concurrency.cancellation import as_failure
from shoal._engine.injection import RECORDED_ITEM
from shoal._engine.run import Run
from shoal._engine.whereabouts import of_parent
from shoal._errors.exceptions import NobodyAccepted, Rejected, TooFewChildren, brief, note
from shoal._events.events import Cancelled, ChildName, Decision, Done, Failed, Outcome, Skipped
from shoal._events.identity import Key
from shoal._graph.until import All, ByFunction, EndCondition, First, FirstItem, Quorum
from shoal._state.state import State, refuse_awaitable

T = TypeVar("T")
Contestant = Run | Done
"""A child that succeeded: in this execution, or in an earlier one."""


class Race(ABC):
    """One race among the children of a step."""

    wanted: int = 1
    """Results that have to be accepted."""
    consults = False
    """Whether the race reads the state after each update."""
    winner: ChildName | None = None
    """The child that has decided; None before a decision, and always if items don't decide."""
    _refusal = "was not accepted"
    """What the message of a refused result says of it."""
    is_broken = False
    """Whether the winner has failed or was cancelled, so that the race is run again or lost."""
    why_broken = "the race is run again"
    """What has become of the winner then."""

    def __init__(self, name: str) -> None:
        """Begin a race.

        Args:
            name: The step's name.
        """
        # For messages and decisions alone.
        self.name = name
        self.chosen: Contestant | None = None
        """The child whose value is the value of the race; None while there is none.

        It may still change, or become None again (``withdraw``), until the decision is saved.
        """
        # Children that succeeded and were refused, each with the error for it, or None if the
        # user's function just said no. Cleared for each attempt.
        self._refused: list[tuple[Contestant, Exception | None]] = []

    @abstractmethod
    def accepts(self, child: Run) -> bool:
        """Judge the next child that succeeded; return whether its result counts."""

    @abstractmethod
    def recall(self, child: Done) -> None:
        """Count a child whose result was accepted in an earlier execution."""

    @abstractmethod
    def withdraw(self, child: Contestant) -> None:
        """Stop counting a child whose result could not be applied, or that runs anew.

        ``accepts`` may have raised for this child, and have counted it or not.
        """

    def on_item(self, run: Run, item: object) -> bool:
        """Note an item that ``run`` has emitted; return whether to call ``decide_by_item``.

        Called in the task of ``run``, and only if items decide.
        """
        return False

    def decide_by_item(self) -> tuple[Run, Decision] | None:
        """Return the child that has emitted the first item, and the decision for it.

        Returns None if that child has ended, if there is a winner already, or if items don't
        decide.
        """
        return None

    def on_ended(self, batch: Iterable[Run]) -> None:
        """Take notice of children whose ends are saved, the winner maybe among them."""
        return

    def reopen(self) -> None:
        """Prepare for another attempt: refused children run again, accepted results still count."""
        self._refused.clear()

    def forget(self) -> None:
        """Release the errors of refused children."""
        self._refused.clear()  # breaks a cycle: the errors' frames refer to this race

    @abstractmethod
    def decide(self, child: Run, state: Callable[[], State]) -> Decision | None:
        """Return the decision by the update of ``child``, which led to ``state``; None: not yet."""

    def decided_by(self, last: Contestant) -> Decision:
        """Return the decision of a race that lacks no result since ``last`` was counted."""
        return self._decision(last, (last,))

    @property
    @abstractmethod
    def lacking(self) -> int:
        """The least number of results that must still be accepted for a decision."""

    def is_lost(self, possible: float) -> bool:
        """Whether it can't be decided any more, with at most ``possible`` children to come."""
        return possible < self.lacking

    def loss(self, ended: Iterable[Outcome], count: int, possible: float) -> NobodyAccepted | None:
        """Make the error of a race that is over without a winner; None if it needs no winner.

        Args:
            ended: The outcomes of children without an accepted result.
            count: The number of children.
            possible: How many more children there could have been, at most.
        """
        losers: list[tuple[int, Exception]] = []
        reasons: list[tuple[int, str]] = []
        for outcome in ended:
            called = _called(outcome.act, outcome.key)
            if isinstance(outcome, Failed):
                losers.append((outcome.position, outcome.error))
                reasons.append((outcome.position, f"{called} failed: {brief(outcome.error)}"))
            elif isinstance(outcome, Cancelled | Skipped):
                was = "cancelled" if isinstance(outcome, Cancelled) else "skipped"
                reasons.append((outcome.position, f"{called} was {was}: {outcome.reason}"))
        for child, error in self._unwanted():
            rejection = self._rejection(child, error)
            losers.append((child.position, rejection))
            reasons.append((child.position, f"{_called(child.path.act, child.key)}: {rejection}"))
        # In input order, so that the error doesn't depend on which child was slower.
        losers.sort(key=lambda loser: loser[0])
        reasons.sort(key=lambda reason: reason[0])
        why = self._why_lost(count)
        # Else the race was lost by the children that have ended, and the number would say nothing.
        if possible and self.is_lost(possible):  # which is why these children were not started
            why += f", and with at most {possible:g} more there can't be {self.wanted}"
        if not losers:
            few = (
                f"no child failed: fan-out {self.name!r} had too few, they were skipped because "
                f"a budget is empty, or they were cancelled by hand"
            )
            losers.append((0, TooFewChildren(few)))
        lost = NobodyAccepted(why, [error for _, error in losers])
        lost.reasons = tuple(reason for _, reason in reasons)
        return lost

    def _unwanted(self) -> Iterable[tuple[Contestant, Exception | None]]:
        """Yield the children whose result didn't win, each with the error that refused it."""
        return self._refused

    @abstractmethod
    def _why_lost(self, count: int) -> str:
        """Describe what the race lacked, for the message of the error."""

    def _rejection(self, child: Contestant, why: Exception | None) -> Rejected:
        path = child.path
        what = f"can't be judged: {brief(why)}" if why is not None else self._refusal
        rejection = Rejected(f"{brief(child.value)} {what}", child.value)
        rejection.__cause__ = why
        note(rejection, f"shoal: {path.act!r}{of_parent(path)}, run {path.id}")
        return rejection

    def _ask(
        self, function: Callable[[Any], T], of: object, child: Contestant, what: str
    ) -> tuple[T] | None:
        """Call a user's function for a child; None: it raised, and the child is refused for it.

        The answer is in a tuple because it may be None.
        """
        try:
            answer = function(of)
        except Exception as error:  # noqa: BLE001 # the child is refused for it
            self._refused.append((child, error))
            return None
        except BaseException as error:
            # A cancellation that the function raised by itself refuses the child, too. See
            # test_an_accept_that_raises_a_cancellation_refuses.
            failure = as_failure(error)
            if failure is None:
                raise
            self._refused.append((child, failure))
            return None
        # Outside of the `try`, because it is the program that is wrong, and not the child; see
        # test_an_accept_that_must_be_awaited_fails_the_step.
        refuse_awaitable(answer, f"{what} of fan-out {self.name!r}")
        return (answer,)

    def _decision(self, child: Contestant, winners: Iterable[Contestant]) -> Decision:
        # By position, since the decision is saved, and must not depend on the order of ends.
        ordered = sorted(winners, key=lambda winner: winner.position)
        return Decision(
            self.name,
            _name(child),
            tuple(map(_name, ordered)),
            f"{_called(child.path.act, child.key)} decided fan-out {self.name!r}",
        )


@final
class FirstRace(Race):
    """A race that the first accepted results decide."""

    def __init__(self, name: str, until: First) -> None:
        super().__init__(name)
        self.wanted = until.n
        self._accept = until.accept
        called = getattr(self._accept, "__name__", "<")
        if not called.startswith("<"):  # a lambda has no name
            self._refusal = f"was not accepted by {called}"
        # In the order in which the parent took them, after those of earlier executions.
        self._accepted: list[Contestant] = []

    def accepts(self, child: Run) -> bool:
        if self._accept is not None:
            answer = self._ask(self._accept, child.value, child, "accept=")
            if answer is None:
                return False
            if not answer[0]:
                self._refused.append((child, None))
                return False
        # Only after the user's function has returned: what it raises must not count the child.
        # Not `chosen`: if one result is wanted, the update that applied it has set the field
        # already.
        self._accepted.append(child)
        self.chosen = child
        return True

    def recall(self, child: Done) -> None:
        self._accepted.append(child)

    def withdraw(self, child: Contestant) -> None:
        if _remove(child, self._accepted):
            self.chosen = self._accepted[-1] if self._accepted else None

    def decide(self, child: Run, state: Callable[[], State]) -> Decision | None:
        return None if self.lacking > 0 else self.decided_by(child)

    def decided_by(self, last: Contestant) -> Decision:
        return self._decision(last, self._accepted)

    @property
    def lacking(self) -> int:
        return self.wanted - len(self._accepted)

    def _why_lost(self, count: int) -> str:
        of, accepted = f"of its {_children(count)}", len(self._accepted)
        if not accepted:
            return f"fan-out {self.name!r}: none {of} was accepted"
        was = "was" if accepted == 1 else "were"
        return f"fan-out {self.name!r}: {accepted} {of} {was} accepted, not {self.wanted}"


@final
class QuorumRace(Race):
    """A race that a number of equal results decide."""

    _refusal = "was not accepted: too few others are equal to it"

    def __init__(self, name: str, until: Quorum) -> None:
        super().__init__(name)
        self.wanted = until.n
        self._by = until.by
        # By the ballot: what `by=` returned for a value, or the value itself.
        self._ballots: dict[object, list[Contestant]] = {}
        self._others: list[tuple[object, list[Contestant]]] = []  # ballots that can't be hashed
        self._most = 0  # votes for the ballot that has most
        self._agreed: list[Contestant] = []  # empty until a ballot has ``wanted`` votes

    def accepts(self, child: Run) -> bool:
        return self._count(child)

    def recall(self, child: Done) -> None:
        self._count(child)

    def withdraw(self, child: Contestant) -> None:
        # Searched, not looked up: calling ``by=`` once more may raise, or return something else.
        ballots = (*self._ballots.values(), *(votes for _, votes in self._others))
        for votes in ballots:
            _remove(child, votes)
        self._most = max(map(len, ballots), default=0)
        # Else the choice stays: the ballot that has it has enough votes without this child.
        if self._most < self.wanted:
            self._agreed, self.chosen = [], None

    def _count(self, child: Contestant) -> bool:
        ballot = child.value
        if self._by is not None:
            answer = self._ask(self._by, ballot, child, "by=")
            if answer is None:
                return False
            (ballot,) = answer
        found = self._ask(self._votes, ballot, child, "the vote")
        if found is None:
            return False
        (votes,) = found
        # Nothing below raises, so the child has one vote or none.
        votes.append(child)
        self._most = max(self._most, len(votes))
        # Equal, not at least: further votes for the same ballot must not change the choice.
        if len(votes) == self.wanted:
            self._agreed = votes
            # By input order, not by arrival: ``by=`` may call different values equal.
            self.chosen = min(votes, key=lambda vote: vote.position)
        return True

    def _votes(self, ballot: object) -> list[Contestant]:
        """Return the children with this ballot. Comparing ballots may raise a user's error."""
        try:
            return self._ballots.setdefault(ballot, [])
        except TypeError:  # it can't be hashed, so it is compared with each other one
            pass
        bool(ballot == ballot)  # noqa: PLR0124 # if it can't be compared, this child is refused
        for other, votes in self._others:
            if other == ballot:
                return votes
        self._others.append((ballot, []))
        return self._others[-1][1]

    def decide(self, child: Run, state: Callable[[], State]) -> Decision | None:
        return self.decided_by(child) if self._agreed else None

    def decided_by(self, last: Contestant) -> Decision:
        return self._decision(last, self._agreed)

    @property
    def lacking(self) -> int:
        return self.wanted - self._most

    def _unwanted(self) -> Iterator[tuple[Contestant, Exception | None]]:
        yield from self._refused
        # No ballot has won when this is asked, so every vote is a vote without effect.
        for votes in (*self._ballots.values(), *(votes for _, votes in self._others)):
            for child in votes:
                yield child, None

    def _why_lost(self, count: int) -> str:
        return f"fan-out {self.name!r}: no {self.wanted} of its {_children(count)} agree"


@final
class PredicateRace(Race):
    """A race that a user's function of the state decides."""

    consults = True

    def __init__(self, name: str, until: ByFunction) -> None:
        super().__init__(name)
        self._function = until.function

    def accepts(self, child: Run) -> bool:
        return True

    def recall(self, child: Done) -> None:
        """Do nothing: the result is in the state already."""

    def withdraw(self, child: Contestant) -> None:
        """Do nothing: no results are kept here."""

    def decide(self, child: Run, state: Callable[[], State]) -> Decision | None:
        answer = cast("object", self._function(state(), child.outcome))
        refuse_awaitable(answer, f"until= of fan-out {self.name!r}")
        # No result is a winner by itself: all that were applied count, and this one was the last.
        return self._decision(child, (child,)) if answer else None

    @property
    def lacking(self) -> int:
        return 1  # any further update may satisfy the function

    def is_lost(self, possible: float) -> bool:
        return False  # without a decision, all children are awaited

    def loss(self, ended: Iterable[Outcome], count: int, possible: float) -> None:
        """Return None: no child has to win, without a decision all are awaited."""

    def _why_lost(self, count: int) -> str:
        raise NotImplementedError


@final
class ItemRace(Race):
    """A race that the first partial item decides; the child that emitted it goes on to its end.

    If a child succeeds before any child has emitted an item, that success decides.
    """

    def __init__(self, name: str, until: FirstItem) -> None:
        super().__init__(name)
        self._when = until.when
        # Set when the first item or, without one, the first success is judged. The save of the
        # decision follows at once, and may still fail.
        self.winner: ChildName | None = None
        # The child that has emitted the first item. Set by its task, until ``decide_by_item`` in
        # the parent's task makes it the winner.
        self._leader: Run | None = None
        self._ended_first = False  # the winner has won by its end, before there was an item

    def on_item(self, run: Run, item: object) -> bool:
        if self.winner is not None or self._leader is not None:
            return False
        # In the task of the child, whose failure it is if the user's function raises; see
        # test_a_when_that_raises_fails_its_child.
        if self._when is not None and item is not RECORDED_ITEM:
            answer = self._when(item)
            refuse_awaitable(answer, f"when= of fan-out {self.name!r}")
            if not answer:
                return False
        self._leader = run
        return True

    def decide_by_item(self) -> tuple[Run, Decision] | None:
        # Taken out: if that child has ended meanwhile, the next item of another one may lead.
        leader, self._leader = self._leader, None
        if leader is None or leader.status is not None or self.winner is not None:
            return None
        self.winner = _name(leader)
        reason = (
            f"{_called(leader.path.act, leader.key)} gave the first item of fan-out {self.name!r}"
        )
        return leader, Decision(self.name, self.winner, (self.winner,), reason)

    def accepts(self, child: Run) -> bool:
        if self.winner is None:
            # It has succeeded before there was any item; see
            # test_a_child_that_succeeds_without_an_item_has_won.
            self.winner, self._ended_first = _name(child), True
        # Another one has won by its item, and this one is too late; see
        # test_a_child_that_succeeds_after_the_item_of_another_is_too_late.
        if self.winner != _name(child):
            return False
        self.chosen = child
        return True

    def recall(self, child: Done) -> None:
        """Do nothing: an accepted result has won, so the race would be over already."""

    def withdraw(self, child: Contestant) -> None:
        if self.chosen is child:
            self.chosen = None
            if self._ended_first:
                # Only a winner by its end: a decision by an item is saved already, and stays.
                self.winner, self._ended_first = None, False

    def decide(self, child: Run, state: Callable[[], State]) -> Decision | None:
        return self._decision(child, (child,)) if self._ended_first else None

    def on_ended(self, batch: Iterable[Run]) -> None:
        """Mark the race as broken if its winner is in ``batch`` and has not succeeded."""
        for child in batch:
            if child.status in ("failed", "cancelled") and self.winner == _name(child):
                # Never unset: the next round has a race of its own.
                self.is_broken = True
                called = _called(child.path.act, child.key)
                if child.status == "failed":
                    self.why_broken = f"{called} failed: {brief(child.error)}"
                else:
                    self.why_broken = f"{called} was cancelled: {child.reason}"

    @property
    def lacking(self) -> int:
        return 1 if self.winner is None else 0

    def is_lost(self, possible: float) -> bool:
        return self.is_broken or super().is_lost(possible)

    def _why_lost(self, count: int) -> str:
        if self.winner is None:
            return f"fan-out {self.name!r}: none of its {_children(count)} gave an item"
        act, key = self.winner
        return f"fan-out {self.name!r}: {_called(act, key)} gave the first item, and then broke off"


_JUDGES: dict[type[EndCondition], Callable[[str, Any], Race | None]] = {
    All: lambda _name, _until: None,
    First: FirstRace,
    Quorum: QuorumRace,
    FirstItem: ItemRace,
    ByFunction: PredicateRace,
}
"""The race for each kind of condition, made of the step's name and the condition."""


def make_race(name: str, until: EndCondition, winner: ChildName | None = None) -> Race | None:
    """Return the race for ``until`` in the step ``name``, or None if all children are awaited.

    ``winner`` is the child by which an earlier execution has decided the race.
    """
    race = _JUDGES[type(until)](name, until)
    if race is not None and winner is not None:
        # Only items decide before their child has a result, so only such a race has a winner here.
        race.winner = winner
    return race


def _remove(child: Contestant, of: list[Contestant]) -> bool:
    """Remove ``child``, if it is there, and return whether it was.

    Compared by identity: equality would compare users' values, which may raise.
    """
    for at in range(len(of) - 1, -1, -1):
        if of[at] is child:
            # From the end, where a child stands that was counted last.
            del of[at]
            return True
    return False


def _name(child: Contestant) -> ChildName:
    return ChildName(child.path.act, child.key)


def _called(act: str, key: Key) -> str:
    return repr(act) if key == "" else f"key {brief(key)}"


def _children(count: int) -> str:
    return "1 child" if count == 1 else f"{count} children"
