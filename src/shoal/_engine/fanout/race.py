"""Contests: whose results count in a fan-out that need not await all, and when it is decided.

Imports the run.

Invariants:
- Children are heard in the order in which the parent takes them, one at a time, and none after the
  decision. So at most one child decides, and at most as many are accepted as were wanted.
- What ``accept`` or ``by`` raises, or a value that is compared, refuses that child, and nothing
  else.
- A contest that can't be decided any more is known to be lost as soon as that is certain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast, final

from shoal._concurrency.cancellation import as_failure
from shoal._engine.run import Run
from shoal._errors.exceptions import NobodyAccepted, Rejected, TooFewChildren, brief, note
from shoal._events.events import ChildName, Decision, Done, Failed, Outcome
from shoal._graph.until import All, ByFunction, EndCondition, First, FirstItem, Quorum
from shoal._state.state import State, refuse_awaitable

T = TypeVar("T")
Contestant = Run | Done
"""A child that succeeded: in this execution, or in an earlier one."""


class Race(ABC):
    """One contest among the children of a step."""

    wanted: int = 1
    """Results that have to be accepted."""
    consults = False
    """Whether it looks at the state after each update."""
    winner: ChildName | None = None
    """The child that has decided by an item; None: none has, or items don't decide."""
    is_broken = False
    """Whether that child has ended, and not well."""

    def __init__(self, name: str) -> None:
        """Begin.

        Args:
            name: The step's.
        """
        self.name = name
        self.chosen: Contestant | None = None
        """The child whose value is that of the whole contest, once that is known."""
        self._refused: list[tuple[Contestant, Exception | None]] = []

    @abstractmethod
    def admits(self, child: Run) -> bool:
        """Hear of the next child that succeeded; tell whether its result counts."""

    @abstractmethod
    def recall(self, child: Done) -> None:
        """Hear of a child whose result counted in an earlier execution."""

    @abstractmethod
    def withdraw(self, child: Contestant) -> None:
        """Forget a child whose result was heard: it could not be applied, or runs anew.

        What ``admits`` raised about it may have happened halfway.
        """

    def reopen(self) -> None:
        """Hear that who was refused is tried again; what was accepted still counts."""
        self._refused.clear()

    def forget(self) -> None:
        """Let go of what refused children: the frames of these errors lead back to here."""
        self._refused.clear()

    @abstractmethod
    def decide(self, child: Run, state: Callable[[], State]) -> Decision | None:
        """Tell whether the update of ``child``, which led to ``state``, has decided it, and how."""

    def decided_by(self, last: Contestant) -> Decision:
        """Return the decision of a contest that lacks nothing since ``last`` was heard."""
        return self._decision(last, (last,))

    @property
    @abstractmethod
    def lacking(self) -> int:
        """The results that must still be accepted before it can be decided, at least."""

    def is_lost(self, possible: float) -> bool:
        """Tell whether it can't be decided any more, with at most ``possible`` children to come."""
        return possible < self.lacking

    def defeat(
        self, ended: Iterable[Outcome], count: int, possible: float
    ) -> NobodyAccepted | None:
        """Say why nobody has won now that it is over; None if nobody had to.

        Args:
            ended: The outcomes of those that brought nothing.
            count: Children that there were.
            possible: How many more there could have been, at most.
        """
        losers: list[tuple[int, Exception]] = [
            (outcome.position, outcome.error) for outcome in ended if isinstance(outcome, Failed)
        ]
        losers += [(child.position, self._rejection(child, why)) for child, why in self._unwanted()]
        losers.sort(key=lambda loser: loser[0])
        why = self._why_lost(count)
        if possible and self.is_lost(possible):  # so these were not started
            why += f", and with at most {possible:g} more there can't be {self.wanted}"
        if not losers:
            few = f"{why}, though nobody failed: it had too few, or they were cancelled by hand"
            losers.append((0, TooFewChildren(few)))
        return NobodyAccepted(why, [error for _, error in losers])

    def _unwanted(self) -> Iterable[tuple[Contestant, Exception | None]]:
        """Go through those that succeeded in vain, and why if there is a reason."""
        return self._refused

    @abstractmethod
    def _why_lost(self, count: int) -> str:
        """Say what there was too little of."""

    def _rejection(self, child: Contestant, why: Exception | None) -> Rejected:
        path = child.path
        what = "can't be judged" if why is not None else "was not accepted"
        rejection = Rejected(f"{brief(child.value)} {what}", child.value)
        rejection.__cause__ = why
        note(
            rejection, f"shoal: {path.act!r} of {self.name!r}, key {brief(path.key)}, run {path.id}"
        )
        return rejection

    def _ask(
        self, function: Callable[[Any], T], of: object, child: Contestant, what: str
    ) -> tuple[T] | None:
        """Ask about what a child brings; None: there is no answer, and it is refused for that."""
        try:
            answer = function(of)
        except Exception as error:  # noqa: BLE001 # the child is refused for it
            self._refused.append((child, error))
            return None
        except BaseException as error:
            failure = as_failure(error)
            if failure is None:
                raise
            self._refused.append((child, failure))
            return None
        refuse_awaitable(answer, f"{what} of fan-out {self.name!r}")
        return (answer,)

    def _decision(self, child: Contestant, winners: Iterable[Contestant]) -> Decision:
        ordered = sorted(winners, key=lambda winner: winner.position)
        return Decision(
            self.name,
            _name(child),
            tuple(map(_name, ordered)),
            f"{_called(child)} decided fan-out {self.name!r}",
        )


@final
class FirstRace(Race):
    """The first accepted results decide."""

    def __init__(self, name: str, until: First) -> None:
        super().__init__(name)
        self.wanted = until.n
        self._accept = until.accept
        self._accepted: list[Contestant] = []

    def admits(self, child: Run) -> bool:
        if self._accept is not None:
            answer = self._ask(self._accept, child.value, child, "accept=")
            if answer is None:
                return False
            if not answer[0]:
                self._refused.append((child, None))
                return False
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
    """Results that agree decide."""

    def __init__(self, name: str, until: Quorum) -> None:
        super().__init__(name)
        self.wanted = until.n
        self._by = until.by
        self._ballots: dict[object, list[Contestant]] = {}
        self._others: list[tuple[object, list[Contestant]]] = []  # ballots that can't be hashed
        self._most = 0  # votes for one ballot
        self._agreed: list[Contestant] = []

    def admits(self, child: Run) -> bool:
        return self._count(child)

    def recall(self, child: Done) -> None:
        self._count(child)

    def withdraw(self, child: Contestant) -> None:
        ballots = (*self._ballots.values(), *(votes for _, votes in self._others))
        for votes in ballots:
            _remove(child, votes)
        self._most = max(map(len, ballots), default=0)
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
        votes.append(child)
        self._most = max(self._most, len(votes))
        if len(votes) == self.wanted:
            self._agreed = votes
            self.chosen = min(votes, key=lambda vote: vote.position)
        return True

    def _votes(self, ballot: object) -> list[Contestant]:
        """Return those that have voted so; what comparing ballots raises is the user's."""
        try:
            return self._ballots.setdefault(ballot, [])
        except TypeError:  # it can't be hashed, so it is compared
            pass
        bool(ballot == ballot)  # noqa: PLR0124 # what can't be is to raise here, not in others' way
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
        for votes in (*self._ballots.values(), *(votes for _, votes in self._others)):
            for child in votes:
                yield child, None

    def _why_lost(self, count: int) -> str:
        return f"fan-out {self.name!r}: no {self.wanted} of its {_children(count)} agree"


@final
class PredicateRace(Race):
    """A user's function decides."""

    consults = True

    def __init__(self, name: str, until: ByFunction) -> None:
        super().__init__(name)
        self._function = until.function

    def admits(self, child: Run) -> bool:
        return True

    def recall(self, child: Done) -> None:
        """Nothing to do: what came of it is in the state."""

    def withdraw(self, child: Contestant) -> None:
        """Nothing to do: only the state was looked at."""

    def decide(self, child: Run, state: Callable[[], State]) -> Decision | None:
        answer = cast("object", self._function(state(), child.outcome))
        refuse_awaitable(answer, f"until= of fan-out {self.name!r}")
        return self._decision(child, (child,)) if answer else None

    @property
    def lacking(self) -> int:
        return 1  # any further update may satisfy the function

    def is_lost(self, possible: float) -> bool:
        return False  # without a decision, all children are awaited

    def defeat(self, ended: Iterable[Outcome], count: int, possible: float) -> None:
        """Nobody had to win: without a decision, all were awaited."""

    def _why_lost(self, count: int) -> str:
        raise NotImplementedError


@final
class ItemRace(Race):
    """The first partial item decides; who has given it goes on to its end.

    A child that ends well before anybody has given one decides by that.
    """

    def __init__(self, name: str, until: FirstItem, winner: ChildName | None = None) -> None:
        """Begin; with ``winner``, an earlier execution has decided."""
        super().__init__(name)
        self._when = until.when
        self.winner: ChildName | None = winner
        self._leader: Run | None = None  # has given the first item; that is not saved yet
        self._ended_first = False

    def hear_item(self, run: Run, item: object) -> bool:
        """Hear that a child has given an item; tell whether it is to be elected for that."""
        if self.winner is not None or self._leader is not None:
            return False
        if self._when is not None:
            answer = self._when(item)
            refuse_awaitable(answer, f"when= of fan-out {self.name!r}")
            if not answer:
                return False
        self._leader = run
        return True

    def elect(self) -> tuple[Run, Decision] | None:
        """Decide for who has given the first item, unless it has ended, or somebody has before."""
        leader, self._leader = self._leader, None
        if leader is None or leader.status is not None or self.winner is not None:
            return None
        self.winner = _name(leader)
        reason = f"{_called(leader)} gave the first item of fan-out {self.name!r}"
        return leader, Decision(self.name, self.winner, (self.winner,), reason)

    def admits(self, child: Run) -> bool:
        if self.winner is None:
            self.winner, self._ended_first = _name(child), True
        if self.winner != _name(child):
            return False
        self.chosen = child
        return True

    def recall(self, child: Done) -> None:
        """Nothing to do: it would have won, and the race be over."""

    def withdraw(self, child: Contestant) -> None:
        if self.chosen is child:
            self.chosen = None
            if self._ended_first:
                self.winner, self._ended_first = None, False

    def decide(self, child: Run, state: Callable[[], State]) -> Decision | None:
        return self._decision(child, (child,)) if self._ended_first else None

    def lose(self, batch: Iterable[Run]) -> None:
        """Hear of children that ended, maybe not well."""
        for child in batch:
            if child.status in ("failed", "cancelled") and self.winner == _name(child):
                self.is_broken = True

    @property
    def lacking(self) -> int:
        return 1 if self.winner is None else 0

    def is_lost(self, possible: float) -> bool:
        return self.is_broken or super().is_lost(possible)

    def _why_lost(self, count: int) -> str:
        if self.winner is None:
            return f"fan-out {self.name!r}: none of its {_children(count)} gave an item"
        act, key = self.winner
        who = repr(act) if key == "" else f"key {brief(key)}"
        return f"fan-out {self.name!r}: {who} gave the first item, and then broke off"


_JUDGES: dict[type[EndCondition], Callable[[str, Any], Race | None]] = {
    All: lambda _name, _until: None,
    First: FirstRace,
    Quorum: QuorumRace,
    FirstItem: ItemRace,
    ByFunction: PredicateRace,
}
"""What judges under each condition, made of the step's name and the condition."""


def contest(name: str, until: EndCondition) -> Race | None:
    """Begin the contest that ``until`` makes of the step ``name``; None: all are awaited."""
    return _JUDGES[type(until)](name, until)


def _remove(child: Contestant, of: list[Contestant]) -> bool:
    """Remove that very child; tell whether it was there. The values of others are not compared."""
    for at in range(len(of) - 1, -1, -1):
        if of[at] is child:
            del of[at]
            return True
    return False


def _name(child: Contestant) -> ChildName:
    return ChildName(child.path.act, child.key)


def _called(child: Contestant) -> str:
    return repr(child.path.act) if child.key == "" else f"key {brief(child.key)}"


def _children(count: int) -> str:
    return "1 child" if count == 1 else f"{count} children"
