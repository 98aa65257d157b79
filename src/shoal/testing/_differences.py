"""Find the first decision in which a replay differs from its record.

Both are ``RecordedRun``s, compared as JSON: step by step in the order in which they were taken,
child by child in the order in which the children had ended, and what is inside of a child before
what its parent made of it. So the difference that is found is a cause, and no consequence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal, cast, final

from shoal._errors.exceptions import brief
from shoal._events.identity import RunPath
from shoal.stores._codec.plain import from_difference, plain

from ._recorded import RecordedRun, RecordedStep, RecordedUpdate

Kind = Literal["edge", "key", "winner", "retry", "outcome", "update", "end"]
"""What differs: the step that follows, the children of a step, the winner of a race, the number of
attempts, how a child or what became of it, the fields of an update, or how the run ends."""

_OF_THE_MOMENT = re.compile(r"\b(BudgetExceeded|Overloaded|StepTimeout)\b")
"""Errors whose texts have figures of the moment."""
_SHOWN = 160  # characters of a value: two lines of a terminal
_BEFORE = 40  # of these, those before the first difference
_MOST = 5  # keys that are named


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first decision of a program that differs from a recorded run.

    Attributes:
        kind: "edge" (another step follows), "key" (a step has other children), "winner" (another
            contestant has won), "retry" (another number of attempts), "outcome" (a child ended in
            another way, or its result was used in another way), "update" (a step changed other
            fields, or in another way), or "end" (the run ended in another way).
        path: the run, root or child, as ``shoal show`` takes it.
        step: the step.
        recorded: what was recorded.
        now: what the program does now.
        hint: what to do about it.
    """

    kind: Kind
    path: str
    step: str
    recorded: str
    now: str
    hint: str = ""

    def __str__(self) -> str:
        """Return it as lines for people."""
        lines = [
            f"  in run    {self.path}",
            f"  at step   {self.step or '(none)'}",
            f"  recorded: {self.recorded}",
            f"  now:      {self.now}",
        ]
        return "\n".join([*lines, f"HINT: {self.hint}"] if self.hint else lines)

    @classmethod
    def of_new_child(cls, parent: RecordedRun, step: RecordedStep, path: RunPath) -> Difference:
        """Return the difference that a step has a child which was not recorded."""
        keys = _named(one.path for one in step.children.values())
        what = f"key {brief(path.key)}" if path.key != "" else f"act {path.act!r}"
        acts = {act for act, _ in step.children}
        if path.key != "" and path.act not in acts and acts:
            what = f"{what} by act {path.act!r}, which was {', '.join(map(repr, sorted(acts)))}"
        return cls(
            kind="key",
            path=parent.place,
            step=step.name,
            recorded=f"{_count(step.children)}: {keys}",
            now=f"one more: {what}",
            hint="look at what the step runs over, at key= and at grow=",
        )

    @classmethod
    def of_waiting(cls, run: RecordedRun) -> Difference:
        """Return the difference that the program waits for a child which was cancelled."""
        return cls(
            kind="outcome",
            path=run.place,
            step=run.path.step,
            recorded=_ended(run),
            now="the program waits for it, and nothing cancels it",
            hint="look at what decided there: until=, accept=, timeout=, on_error=",
        )


def edge_between(recorded: RecordedRun, step: str, taken: int | None = None) -> Difference:
    """Return the difference that a run goes to a step which it had not gone to.

    Args:
        recorded: The run.
        step: The step.
        taken: The steps that the present run has completed; None: as many as the recorded one.
    """
    names = [one.name for one in recorded.steps]
    if taken is None:
        taken = sum(one.is_completed for one in recorded.steps)
    before = names[taken - 1] if 0 < taken <= len(names) else ""
    return _edge(recorded, before, names[taken] if taken < len(names) else "", step)


def _edge(run: RecordedRun, before: str, then: str, now: str) -> Difference:
    behind = f"after {before!r} " if before else "at the start "
    return Difference(
        kind="edge",
        path=run.place,
        step=before or now or then,
        recorded=f"{behind}came {then!r}" if then else f"{behind}the run ended",
        now=f"{behind}comes {now!r}" if now else f"{behind}the run ends",
        hint="look at the edges of the graph and their conditions; if the change is meant, record "
        "a new run",
    )


def retry_difference(recorded: RecordedRun, step: str, attempts: int) -> Difference:
    """Return the difference that a step makes another number of attempts."""
    ended = "failed" if recorded.status == "failed" else "succeeded"
    if attempts > recorded.attempts:
        now = f"attempt {attempts} is made"
    else:
        now = f"at most {_times(attempts)} allowed"
    return Difference(
        kind="retry",
        path=recorded.place,
        step=step,
        recorded=f"{ended} in attempt {recorded.attempts}"
        + (f": {recorded.error_text}" if recorded.error_text else ""),
        now=now,
        hint="look at retry= of the action, and at Each(retry=) of the fan-out",
    )


def _times(count: int) -> str:
    return f"{count} attempt{'s are' if count != 1 else ' is'}"


# -- two runs -------------------------------------------------------------------------------------


def first_difference(recorded: RecordedRun, now: RecordedRun) -> Difference | None:
    """Return the first difference between a recorded run and its replay; None if there is none.

    What one of them has not reached is no difference: a record may end anywhere, and a replay is
    ended where the program goes past its record.
    """
    for at, step in enumerate(now.steps):
        if at >= len(recorded.steps):
            if recorded.status == "succeeded" and (step.is_completed or step.updates):
                before = now.steps[at - 1].name if at else ""
                return _edge(recorded, before, "", step.name)
            return None
        other = recorded.steps[at]
        if (other.name, other.visit) != (step.name, step.visit):
            if not (step.is_completed or step.updates or other.is_completed):
                return None
            before = now.steps[at - 1].name if at else ""
            return _edge(recorded, before, other.name, step.name)
        found = _step_difference(recorded, other, step, now)
        if found is not None:
            return found
    if now.status == "succeeded" and len(recorded.steps) > len(now.steps):
        before = now.steps[-1].name if now.steps else ""
        return _edge(recorded, before, recorded.steps[len(now.steps)].name, "")
    return None


def end_difference(recorded: RecordedRun, now: RecordedRun) -> Difference | None:
    """Return the difference between the ends of two root runs; None if there is none."""
    if not recorded.is_over or not now.is_over or recorded.status == now.status:
        return None
    step = next((one.name for one in reversed(now.steps)), "")
    return Difference(
        kind="end",
        path=recorded.place,
        step=step,
        recorded=_ended(recorded),
        now=_ended(now),
        hint="look at what the step does besides its actions: reduce=, accept=, conditions, the "
        "model of the state",
    )


def _ended(run: RecordedRun) -> str:
    why = run.error_text or run.reason
    return f"{run.status}: {' '.join(why.split())}" if why else run.status


def _step_difference(
    run: RecordedRun, recorded: RecordedStep, now: RecordedStep, now_run: RecordedRun
) -> Difference | None:
    for one in (*_pairs(run.own_fan_outs(recorded), now_run.own_fan_outs(now)), (recorded, now)):
        # What is inside of the children, then who has won, then how the children ended: a loser of
        # another race has another end as well.
        found = _inner_difference(*one)
        was, comes = one[0].decision, one[1].decision
        if found is None and was is not None and comes is not None and was[:2] != comes[:2]:
            found = _winner(run, one[0], was, comes)
        found = found or _children_difference(*one)
        if found is not None:
            return found
        if not one[0].is_reopened:  # else its updates are those of several executions
            found = _update_difference(run, *one)
        # Last, because the updates tell which elements were found.
        found = found or _key_difference(run, *one)
        if found is not None:
            return found
    return None


def _pairs(
    recorded: Sequence[RecordedStep], now: Sequence[RecordedStep]
) -> Iterator[tuple[RecordedStep, RecordedStep]]:
    found = {(one.name, one.visit): one for one in now}
    for one in recorded:
        other = found.get((one.name, one.visit))
        if other is not None:
            yield one, other


# -- children -------------------------------------------------------------------------------------


def _inner_difference(recorded: RecordedStep, now: RecordedStep) -> Difference | None:
    for one, other in _children_of_both(recorded, now):
        is_comparable = other.status != "running" and not _has_lost(recorded, one, other)
        found = first_difference(one, other) if is_comparable else None
        if found is not None:
            return found
    return None


def _children_of_both(
    recorded: RecordedStep, now: RecordedStep
) -> Iterator[tuple[RecordedRun, RecordedRun]]:
    """Yield the children that both have, in the order in which the recorded ones ended."""
    order = recorded.arrived()
    ended = {one.path for one in order}
    order += [one for one in recorded.children.values() if one.path not in ended]
    for one in order:
        other = now.children.get((one.path.act, one.path.key))
        if other is not None:
            yield one, other


def _children_difference(recorded: RecordedStep, now: RecordedStep) -> Difference | None:
    for one, other in _children_of_both(recorded, now):
        found = _child_difference(recorded, now, one, other)
        if found is not None:
            return found
    return None


def _key_difference(
    run: RecordedRun, recorded: RecordedStep, now: RecordedStep
) -> Difference | None:
    """Return whether one of them has children that the other one lacks."""
    if recorded.decision is not None and now.decision is not None:
        return None  # the elements that were started until then depend on the time
    if not (recorded.is_completed and now.is_completed):
        return None
    gone = [one for name, one in recorded.children.items() if name not in now.children]
    new = [one for name, one in now.children.items() if name not in recorded.children]
    if not gone and not new:
        return None
    missing = f" without {_named(one.path for one in gone)}" if gone else ""
    more = f" with {_named(one.path for one in new)}" if new else ""
    return Difference(
        kind="key",
        path=run.place,
        step=recorded.name,
        recorded=f"{_count(recorded.children)}: "
        f"{_named(one.path for one in recorded.children.values())}",
        now=f"{_count(now.children)},{missing}{' and' if gone and new else ''}{more}",
        hint="look at what the step runs over, at key= and at grow=",
    )


def _has_lost(step: RecordedStep, recorded: RecordedRun, now: RecordedRun) -> bool:
    """Return whether a child has lost a race in both runs: how it ends depends on the time then."""
    is_loser = step.decision is not None and not _has_won(step, recorded)
    return is_loser and (now.status in ("cancelled", "failed") or not now.used)


def _child_difference(
    step: RecordedStep, step_now: RecordedStep, recorded: RecordedRun, now: RecordedRun
) -> Difference | None:
    if now.status == "running" or _has_lost(step, recorded, now):
        return None
    is_result = now.status == "cancelled" or (recorded.used and not now.used)
    if is_result and step.decision is None and not step_now.is_completed:
        return None  # the step has failed, which the end of the run says
    if recorded.status not in ("succeeded", "failed", "skipped"):
        return None
    kind, was, comes = "outcome", _outcome(recorded), _outcome(now)
    if recorded.status == now.status and recorded.status == "failed":
        # A SavedError stands for an exception that can't be restored, and has its type in its text.
        saved = now.error_text.startswith("SavedError: ")
        is_same = _lasting(now.error_text) == _lasting(recorded.error_text)
        if recorded.error is None or is_same:
            return None
        if saved and now.error_text.endswith(recorded.error_text):
            return None
    elif (recorded.status, recorded.used) == (now.status, now.used):
        return None
    return Difference(
        kind=kind,
        path=recorded.place,
        step=step.name,
        recorded=was,
        now=comes,
        hint="look at what judges the child: accept=, take=, limits, timeouts, the model of the "
        "state",
    )


def _has_won(step: RecordedStep, run: RecordedRun) -> bool:
    winners: list[Any] = [] if step.decision is None else step.decision[1]
    return [run.path.act, run.path.key] in winners


def _outcome(run: RecordedRun) -> str:
    if run.status == "succeeded":
        return "succeeded" if run.used else "succeeded, and its result was not used"
    return _ended(run)


def _winner(run: RecordedRun, step: RecordedStep, was: list[Any], now: list[Any]) -> Difference:
    return Difference(
        kind="winner",
        path=run.place,
        step=step.name,
        recorded=f"{_called(was[0])} won ({was[2]})",
        now=f"{_called(now[0])} wins ({now[2]})",
        hint="look at accept=, by= and until= of the race",
    )


def _called(name: list[Any]) -> str:
    act, key = name
    return repr(act) if key == "" else f"key {brief(key)}"


def _count(children: Sized) -> str:
    count = len(children)
    return f"{count:,} child{'' if count == 1 else 'ren'}"


def _elements(found: Sized) -> str:
    return f"{len(found):,} new element{'' if len(found) == 1 else 's'}"


def _named(paths: Iterable[RunPath]) -> str:
    paths = list(paths)
    names = [brief(one.key) if one.key != "" else repr(one.act) for one in paths]
    more = f" and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
    return f"{', '.join(names[:_MOST])}{more}" or "none"


# -- updates --------------------------------------------------------------------------------------


def _update_difference(
    run: RecordedRun, recorded: RecordedStep, now: RecordedStep
) -> Difference | None:
    rests = list(now.updates)
    for update in recorded.updates:
        other = _taken(rests, update)
        if other is None:
            continue  # not reached, or of a child that differs
        if _same(update.operations, other.operations):
            if update.found == other.found:
                continue
            return _found_difference(run, recorded, update, other)
        return _operations_difference(run, recorded, update, other)
    if now.is_completed and recorded.is_completed:
        left = [one for one in rests if one.child is None]
        if left:
            return _operations_difference(run, recorded, None, left[0])
    return None


def _taken(rests: list[RecordedUpdate], update: RecordedUpdate) -> RecordedUpdate | None:
    """Take out the update that corresponds to another one: of the same child, or the next."""
    for at, one in enumerate(rests):
        mine = None if one.child is None else one.child.path
        if mine == (None if update.child is None else update.child.path):
            return rests.pop(at)
    return None


def _found_difference(
    run: RecordedRun, step: RecordedStep, was: RecordedUpdate, now: RecordedUpdate
) -> Difference:
    of = "" if was.child is None else f" of {_named([was.child.path])}"
    one, other = _two(was.found, now.found)
    return Difference(
        kind="key",
        path=run.place,
        step=step.name,
        recorded=f"the result{of} led to {_elements(was.found)}: {one}",
        now=f"it leads to {_elements(now.found)}: {other}",
        hint="look at grow=, and at key=",
    )


def _operations_difference(
    run: RecordedRun, step: RecordedStep, was: RecordedUpdate | None, now: RecordedUpdate
) -> Difference:
    child = now.child
    of = "" if child is None else f" (applying {_named([child.path])})"
    before = [] if was is None else was.operations
    fields = [one for one in now.operations if one not in before] or now.operations
    others = [one for one in before if one not in now.operations] or before
    one, other = _two(others, fields)
    if others and fields and [others[0][:2]] == [fields[0][:2]]:
        one, other = _two(others[0][2:], fields[0][2:])
        one, other = (f"{_how(others[0])} {one}", f"{_how(fields[0])} {other}")
    return Difference(
        kind="update",
        path=run.place,
        step=step.name,
        recorded=f"{one if others else 'no change'}{of}",
        now=f"{other if fields else 'no change'}{of}",
        hint="look at reduce=, into=, take= and the model of the state",
    )


def _how(operation: list[Any]) -> str:
    kind, field = operation[:2]
    return f"{field!r} {'= ' if kind == 'set' else kind + ' '}".rstrip()


def _same(one: Any, other: Any) -> bool:
    return one == other or _without_ways(one) == _without_ways(other)


def _without_ways(value: Any) -> Any:
    """Return stored JSON, of errors only the type and the text: the rest tells their ways."""
    if isinstance(value, list):
        return [_without_ways(one) for one in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    data = cast("dict[str, Any]", value)
    if data.get("@") == "error":
        return _error(data.get("@type"), data.get("text"))
    if data.get("@type") == "shoal:ErrorInfo":
        return _error(data.get("type"), data.get("message"))
    return {name: _without_ways(one) for name, one in data.items()}


def _error(kind: object, text: object) -> str:
    """Return a stored error as text; one that could not be restored as the one it stands for."""
    name = str(kind).replace("builtins:", "").replace(":", ".")
    whole = str(text) if name in ("shoal.SavedError", "SavedError") else f"{name}: {text}"
    return _lasting(whole)


def _lasting(text: str) -> str:
    """Return the text of an error without the figures of the moment: what was spent, or waiting."""
    found = _OF_THE_MOMENT.search(text)
    return text if found is None else text[: found.end()]


def _two(one: Any, other: Any) -> tuple[str, str]:
    """Return two values as JSON, shortened so that their first difference is shown."""
    texts = [json.dumps(plain(value), ensure_ascii=False) for value in (one, other)]
    if texts[0] == texts[1]:  # they differ in their types
        texts = [json.dumps(value, ensure_ascii=False) for value in (one, other)]
    first, second = from_difference(texts[0], texts[1], shown=_SHOWN, before=_BEFORE)
    return _cut(first), _cut(second)


def _cut(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
