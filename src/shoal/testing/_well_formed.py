"""`assert_well_formed`: what is true of every history that an engine may save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from shoal._engine.progress import asks_for_more
from shoal._errors.exceptions import UnknownRun, brief
from shoal._events.events import Decision, Update
from shoal._events.identity import RunPath
from shoal._graph.until import FirstItem
from shoal.stores._history import (
    Completed,
    Entry,
    QuestionAnswered,
    QuestionAsked,
    Rewound,
    StepBegun,
)
from shoal.stores._protocol import ENDED, ChildRecord, Store


def assert_well_formed(history: Sequence[Entry]) -> None:
    """Check that a history is one that a run may have.

    Updates are numbered from 1 without gaps, and each belongs to the step under way; one step is
    completed before the next one begins, with the number of an update in it; a race has one
    decision in a visit, or if its first item decides, further ones until a result is applied; the
    winner of a decision is among its winners; a run goes back only into a visit that it has
    completed; a question keeps its id, but a budget has others when more is spent; and nothing is
    answered twice in different ways.

    >>> async def history() -> Sequence[Entry]:
    ...     app = Application(fan_out(double, over="ns", item="n", into="twice"))
    ...     app.store = MemoryStore()
    ...     await app.run({"ns": [1, 2]}, id="r")
    ...     return await app.store.read(RunPath(run_id="r"))
    >>> @action(reads=["n"], writes=["double"])
    ... async def double(n: int) -> int:
    ...     return 2 * n
    >>> assert_well_formed(run_virtual(history))

    Args:
        history: all entries of a run, root or child, as ``Store.read`` returns them.

    Raises:
        AssertionError: The message has a line for each thing that is wrong.
    """
    problems = list(_problems(history))
    assert not problems, "the history is not well-formed:\n- " + "\n- ".join(problems)


def _problems(history: Sequence[Entry]) -> Iterator[str]:
    number, step = 0, ""
    completed: list[tuple[str, int]] = []  # step, and number before the save that completed it
    visits: dict[str, int] = {}
    decided_again = {at for at, _, _ in second_decisions(history)}
    asked: dict[str, str] = {}
    answers: dict[str, object] = {}
    is_back = False  # after a `Rewound` the next update restores the state
    for at, entry in enumerate(history):
        where = f"entry {at}"
        match entry:
            case Update():
                if entry.number != number + 1:
                    yield f"{where} is update {entry.number}, and comes after update {number}"
                number = entry.number
                if step and entry.step != step:
                    yield f"{where}: update {number} is of step {entry.step!r}, in step {step!r}"
                step, is_back = entry.step, False
            case StepBegun():
                if step and entry.step != step:
                    yield f"{where}: step {entry.step!r} begins in step {step!r}"
                step = entry.step
            case Decision():
                if at in decided_again:
                    visit = visits.get(entry.step, 0)
                    yield f"{where}: {entry.step!r} is decided twice in visit {visit}"
                if entry.winner not in entry.winners:
                    yield f"{where}: the winner {entry.winner!r} is not among {entry.winners!r}"
            case Completed():
                if step and entry.step != step:
                    yield f"{where}: step {entry.step!r} is completed in step {step!r}"
                if entry.number > number:
                    yield f"{where}: {entry.step!r} is completed at {entry.number}, after {number}"
                completed.append((entry.step, entry.number))
                visits[entry.step] = visits.get(entry.step, 0) + 1
                step, asked = "", {}
            case Rewound():
                if visits.get(entry.step, 0) <= entry.visit:
                    visit = f"visit {entry.visit} of {entry.step!r}"
                    yield f"{where} goes back into {visit}, which is new"
                while completed:
                    name, _ = completed.pop()
                    visits[name] = visits.get(name, 1) - 1
                    if (name, visits[name]) == (entry.step, entry.visit):
                        break
                step, is_back = "", True
            case QuestionAsked() if asks_for_more(entry):
                pass  # the larger amount is spent, so there is another question
            case QuestionAsked():
                known = asked.setdefault(entry.name, entry.id)
                if known != entry.id:
                    yield f"{where}: the question {entry.name!r} has another id than before"
            case QuestionAnswered():
                if entry.id in answers and answers[entry.id] != entry.value:
                    yield f"{where}: the question {entry.id} has another answer than before"
                answers[entry.id] = entry.value
            case _:  # what is spent and steered may come anywhere
                pass
    if is_back:
        yield "the run went back into a step, and nothing restores its state"


def second_decisions(history: Sequence[Entry]) -> Iterator[tuple[int, Decision, Decision]]:
    """Yield the decisions that a race can't have, since it was decided before in that visit.

    The first item decides a race while its winner is still at work. If the winner breaks off, the
    race may be run and decided again, by an item or by a result, which is the last one then.

    Yields the index of each such decision, the decision before it, and itself.
    """
    by_item: set[str] = set()  # races that their first item decides, as the program has declared
    decided: dict[str, Decision] = {}
    applied = Counter[str]()  # updates of a visit
    is_back = False  # after a `Rewound` the next update restores the state, and applies nothing
    for at, entry in enumerate(history):
        match entry:
            case StepBegun():
                # The last declaration counts: a changed program may go on with the step.
                is_by_item = entry.declared.get("until") == FirstItem.name
                (by_item.add if is_by_item else by_item.discard)(entry.step)
            case Update():
                applied[entry.step] += not is_back
                is_back = False
            case Decision():
                before = decided.get(entry.step)
                # A result that decides is saved with its decision, right before it.
                own = at > 0 and isinstance(history[at - 1], Update)
                is_open = entry.step in by_item and applied[entry.step] <= own
                if before is not None and not is_open:
                    yield at, before, entry
                decided[entry.step] = entry
            case Completed():
                decided.pop(entry.step, None)
                del applied[entry.step]
            case Rewound():  # what was under way is void
                decided.clear()
                applied.clear()
                is_back = True
            case _:
                pass


async def assert_run_well_formed(store: Store, run_id: str) -> None:
    """Check a stored run with all its descendants: their histories, and how they fit together.

    Besides what `assert_well_formed` checks of each history: what the parent applied is in the
    parent's history, no two children were applied by one update, winners are children, and below a
    run that has ended nothing is under way.

    Args:
        store: has the run. Children that are kept in another store are not looked at.
        run_id: the run.

    Raises:
        AssertionError: The message has a line for each thing that is wrong.
        UnknownRun: The store has no such run.
    """
    record = await store.load(run_id)
    if record is None:
        raise UnknownRun(f"there is no run {run_id!r} in the store")
    problems: list[str] = []
    walked = [(RunPath(run_id=run_id), record.status in ENDED)]
    while walked:
        path, is_over = walked.pop()
        history, children = await store.read(path), await store.children(path)
        is_whole = path.parent is None or any(isinstance(one, Completed) for one in history)
        if is_whole and (path.parent is not None or record.beginning.forked_from is None):
            problems += [f"{path!r}: {one}" for one in _problems(history)]
        problems += [f"{path!r}: {one}" for one in _misfits(history, children, is_over=is_over)]
        for child in children:
            below = RunPath(
                parent=path, step=child.step, visit=child.visit, act=child.act, key=child.key
            )
            walked.append((below, is_over or child.status in ENDED))
    assert not problems, "the run is not well-formed:\n- " + "\n- ".join(problems)


def _misfits(
    history: Sequence[Entry], children: Sequence[ChildRecord], *, is_over: bool
) -> Iterator[str]:
    numbers = {entry.number for entry in history if isinstance(entry, Update)}
    applied: dict[int, str] = {}
    names = {(child.step, child.act, child.key) for child in children}
    for child in children:
        what = f"{child.act!r} {brief(child.key)} in visit {child.visit} of {child.step!r}"
        if child.status is None and is_over:
            yield f"{what} is under way in a run that has ended"
        if child.applied is None:
            continue
        if child.applied not in numbers:
            yield f"{what} was applied by update {child.applied}, which does not exist"
        if child.applied in applied:
            yield f"{what} and {applied[child.applied]} were applied by one update"
        applied[child.applied] = what
    for entry in history:
        if isinstance(entry, Decision):
            lost = [one for one in entry.winners if (entry.step, *one) not in names]
            if lost:
                yield f"{entry.step!r} was won by {lost[0]!r}, which is no child of it"
