"""``LeadingItems``: the items that count in a race by its first item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from shoal._errors.exceptions import brief

from .events import AttemptEnded, Cancelled, ChildEnded, Event, Failed, Item, LeaderChanged
from .identity import RunPath


@final
class LeadingItems:
    """The items that count in a race by ``first_item``: those of the contestant that leads.

    Give it the events of a run, as they come: from ``run.events()``, ``app.open()`` or a hook. Of
    each contestant it keeps the items until it is known which one leads, because the first items
    come before the decision for them is saved.

    Examples:
        >>> import anyio
        >>> from shoal.events import Item, LeadingItems
        >>> @action(writes=["story"])
        ... async def tell(model: str) -> AsyncIterator[str | Result[str]]:
        ...     yield "Once"
        ...     yield " upon a time"
        ...     yield Result(f"a story by {model}")
        >>> one, two = (tell.bind(name=name, model=name) for name in ("one", "two"))
        >>> app = Application(race(one, two, into="story", until=first_item()))
        >>> async def main() -> None:
        ...     items = LeadingItems("story")
        ...     async with app.open() as run:
        ...         async for event in run:
        ...             for news in items.on_event(event):
        ...                 print(news.item if isinstance(news, Item) else "from the start:")
        >>> anyio.run(main)
        Once
         upon a time
    """

    __slots__ = ("_given", "_kept", "_of", "_visit", "leader", "step")

    def __init__(self, step: str, *, of: RunPath | None = None) -> None:
        """Begin without an event.

        Args:
            step: The race's name.
            of: The run whose step it is; None: any, which is enough unless several runs below one
                root hold a race of that name.
        """
        self.step: str = step
        self.leader: RunPath | None = None
        """The contestant that leads, or has won; None: none does."""
        self._of = of
        self._visit: int = 0
        self._given = 0  # items of the leader that were returned
        # Of each contestant: those since it has begun, or begun anew. Of the leader only as long as
        # it is not known.
        self._kept: dict[RunPath, list[Item]] = {}

    def on_event(self, event: Event) -> Sequence[Item | LeaderChanged]:
        """Take an event; return the items that count, each once.

        If items that were returned count no more, a ``LeaderChanged`` stands in front and says why:
        the contestant broke off, or is executed from its start again.
        """
        match event:
            case Item():
                contestant = self._contestant(event.path)
                return () if contestant is None else self._add(contestant, event)
            case LeaderChanged(step=step) if step == self.step and self._of in (None, event.path):
                return self._follow(event)
            case AttemptEnded(error=Exception() as error):
                if event.path == self.leader:
                    return self._start_over(event.path, f"an attempt failed: {brief(error)}")
                self._kept.pop(event.path, None)
            case ChildEnded(outcome=Failed() | Cancelled() as outcome):
                if outcome.path == self.leader:  # also if the whole race ends: then it is all
                    return self._follow(self._without_leader(event, outcome))
                self._kept.pop(outcome.path, None)  # it can't take the lead any more
            case _:
                pass
        return ()

    def _contestant(self, path: RunPath) -> RunPath | None:
        """Return the contestant that is, or is above, the run at ``path``; None if none is."""
        at = path
        while at.parent is not None:
            if at.step == self.step and self._of in (None, at.parent):
                return at
            at = at.parent
        return None

    def _add(self, contestant: RunPath, item: Item) -> Sequence[Item | LeaderChanged]:
        self._begin(contestant)
        begins = not item.index and contestant == item.path  # then what was before is void
        if contestant == self.leader:
            why = "it begins from its start again"
            news = self._start_over(contestant, why) if begins else ()
            self._given += 1
            return (*news, item)
        if begins:
            self._kept[contestant] = []
        self._kept.setdefault(contestant, []).append(item)
        return ()

    def _start_over(self, leader: RunPath, why: str) -> Sequence[LeaderChanged]:
        """Return that the items of the leader count no more, if any were returned."""
        if not self._given:
            return ()
        assert leader.parent is not None, "it is a child of the race's run"
        self._given = 0
        return (LeaderChanged(path=leader.parent, step=self.step, leader=leader, reason=why),)

    def _follow(self, event: LeaderChanged) -> Sequence[Item | LeaderChanged]:
        if event.leader is not None:
            self._begin(event.leader)
        if event.leader == self.leader:
            return ()
        news: list[Item | LeaderChanged] = [event] if self._given else []
        self.leader, self._given = event.leader, 0
        if event.leader is not None:
            items = self._kept.pop(event.leader, [])
            self._kept.clear()  # the others are cancelled
            self._given = len(items)
            news += items
        return news

    def _without_leader(self, event: ChildEnded, outcome: Failed | Cancelled) -> LeaderChanged:
        called = repr(outcome.act) if outcome.key == "" else f"key {brief(outcome.key)}"
        if isinstance(outcome, Failed):
            why = f"{called} failed: {brief(outcome.error)}"
        else:
            why = f"{called} was cancelled: {outcome.reason}"
        return LeaderChanged(path=event.path, step=self.step, leader=None, reason=why)

    def _begin(self, contestant: RunPath) -> None:
        """Forget an earlier visit of the race, whose items counted."""
        if contestant.visit != self._visit:
            self._visit, self.leader, self._given = contestant.visit, None, 0
            self._kept.clear()

    def __repr__(self) -> str:
        return f"<LeadingItems of {self.step!r}: {self.leader}>"
