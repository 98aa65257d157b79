"""A stored run as data: read from a store or a fixture, and taken apart into runs and steps.

The data is JSON. So it is written into a file as it is, and read and compared without the types of
the program; ``Recording.codec`` decodes what a replay serves.

Invariants:
- What a history has made void (it went back into a step) is no part of a ``RecordedRun``.
- Nothing in the data is of one machine: times count from the start of the run, and errors have no
  tracebacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, final

from shoal._errors.exceptions import BadUse, UnknownRun
from shoal._events.identity import Key, RunPath
from shoal._events.paths import parse_path, path_text
from shoal.stores._protocol import Store, similar_run
from shoal.stores._watching import EntryKind, Inspects, Row

FORMAT = "shoal recorded run, format 1"
_KINDS: tuple[EntryKind, ...] = (
    "update",
    "decision",
    "completed",
    "rewound",
    "begun",
    "asked",
    "answered",
    "spent",
)
_PAGE = 1_000  # rows and entries that are read at once
_PLACES = (
    "trace",
    "traceback",
)  # of an error: files and lines of the machine that it was raised on

Data = dict[str, Any]
_Child = tuple[str, Key]  # act and key


# -- one run --------------------------------------------------------------------------------------


@final
@dataclass(slots=True, kw_only=True)
class RecordedUpdate:
    """An update of a run."""

    number: int
    at: float
    """Seconds from the start of the root run to its save."""
    operations: list[Any]
    """JSON: ``[[kind, field, ...], ...]``."""
    found: list[Any]
    """The elements that it discovered, as JSON."""
    child: RecordedRun | None


@final
@dataclass(slots=True, kw_only=True)
class RecordedStep:
    """One visit of a step of a run."""

    name: str
    visit: int
    updates: list[RecordedUpdate] = field(default_factory=list[RecordedUpdate])
    is_completed: bool = False
    at: float = 0.0
    """Seconds from the start of the root run to its last save."""
    is_reopened: bool = False
    """Whether the run went back into it: then its updates are those of several executions."""
    decision: list[Any] | None = None
    """JSON: ``[winner, winners, reason]``."""
    decided_at: float = 0.0
    by_item: bool = False
    """Whether an item has decided it, and not a success."""
    asked: list[list[Any]] = field(default_factory=list[list[Any]])
    """JSON: ``[name, question, id]``, and the schema of answers if there is one."""
    acts: set[str] = field(default_factory=set[str])
    """The acts of its children, as it was declared; empty if it declared none."""
    children: dict[_Child, RecordedRun] = field(default_factory=dict[_Child, "RecordedRun"])

    last: RecordedRun | None = None
    """The last of its children that ended by themselves."""

    def arrived(self) -> list[RecordedRun]:
        """Return the children that ended by themselves, in the order in which they did."""
        ended = [one for one in self.children.values() if one.status in ("succeeded", "failed")]
        ended.sort(key=lambda one: (one.ended, one.position))
        # Those that were applied came in the order of their updates, whatever the clocks say.
        applied = iter(
            sorted(
                (one for one in ended if one.applied is not None), key=lambda one: one.applied or 0
            )
        )
        return [one if one.applied is None else next(applied) for one in ended]


@final
class RecordedRun:
    """A run, root or child, with its steps in the order in which they were taken."""

    def __init__(
        self, data: Data, path: RunPath, parent: RecordedRun | None, visits: Mapping[str, int]
    ) -> None:
        """Take the data of a run apart; see ``Recording``."""
        self.path: RunPath = path
        self.parent: RecordedRun | None = parent
        self.status: str = data.get("status", "running")
        self.error: Any = data.get("error")
        self.error_text: str = data.get("error_text", "")
        self.reason: str = data.get("reason", "")
        self.attempts: int = data.get("attempts", 1)
        self.used: bool = data.get("used", True)
        self.lost: bool = "winner" in data
        self.applied: int | None = data.get("applied")
        self.position: int = data.get("position", 0)
        self.ended: float = data.get("ended", 0.0)
        self.failed_step: str = data.get("failed_step", "")
        self.has_value: bool = "value" in data
        self.value: Any = data.get("value")
        self.steps: list[RecordedStep] = []
        self.answers: dict[str, Any] = {}
        # The children of all visits, those of steps that are not in the history among them.
        self._visits: dict[tuple[str, int], RecordedStep] = {}
        names = dict[str, RecordedRun]()
        for one in data.get("children", ()):
            child_path = parse_path(f"{path_text(path)}/{one['path']}")
            child = RecordedRun(one, child_path, self, {})
            names[one["path"]] = child
            at = (child_path.step, child_path.visit)
            step = self._visits.setdefault(at, RecordedStep(name=at[0], visit=at[1]))
            step.children[child_path.act, child_path.key] = child
        self._play(data.get("history", ()), names, dict(visits))
        # A fan-out that has saved nothing of its own yet is the step under way.
        self.steps += [
            step
            for step in self._visits.values()
            if step not in self.steps and "/" not in step.name and not step.is_completed
        ]
        if parent is not None and self.status == "succeeded" and self.steps:
            self.steps[-1].is_completed = True  # saved with the end of the run
        self.predecessor: RecordedRun | None = None
        """The sibling that ended before it."""
        for step in self._visits.values():
            for one in step.arrived():
                one.predecessor, step.last = step.last, one

    def _play(
        self, history: list[Data], children: Mapping[str, RecordedRun], visits: dict[str, int]
    ) -> None:
        def under_way(name: str) -> RecordedStep:
            at = name, visits.get(name, 0)
            step = self._visits.setdefault(at, RecordedStep(name=name, visit=at[1]))
            if not self.steps or self.steps[-1] is not step:
                self.steps.append(step)
            return step

        number = 0
        for entry in history:
            data: Any = entry.get("data")
            name, when = entry.get("step", ""), entry.get("at", 0.0)
            match entry["kind"]:
                case "update":
                    step = under_way(name)
                    number, step.at = data["number"], when
                    step.updates.append(
                        RecordedUpdate(
                            number=number,
                            at=when,
                            operations=data["do"],
                            found=data.get("found", []),
                            child=children.get(entry.get("child", "")),
                        )
                    )
                case "begun":
                    under_way(name).acts.update(data.get("acts", ()))
                case "decision":
                    step = under_way(name)
                    step.decision, step.decided_at = data, when
                    winner = step.children.get((data[0][0], data[0][1]))
                    applied = None if winner is None else winner.applied
                    step.by_item = applied is None or applied > number
                case "completed":
                    step = under_way(name)
                    step.is_completed, step.at = True, when
                    visits[name] = step.visit + 1
                case "rewound":
                    while self.steps:
                        step = self.steps[-1]
                        visits[step.name] = step.visit
                        step.is_completed = False
                        if (step.name, step.visit) == (name, data):
                            step.is_reopened, step.decision = True, None
                            break
                        step.updates, step.asked, step.decision = [], [], None
                        self.steps.pop()
                case "asked":
                    under_way(name).asked.append(data)
                case "answered":
                    self.answers[data[0]] = data[1]
                case _:
                    pass

    @property
    def is_over(self) -> bool:
        """Whether it ended by itself."""
        return self.status in ("succeeded", "failed")

    def step(self, name: str, visit: int) -> RecordedStep | None:
        """Return a visit of a step; None if it was never taken."""
        return self._visits.get((name, visit))

    def has_below(self, step: str) -> bool:
        """Return whether the action of a step has started children of its own."""
        return any(name.startswith(f"{step}/") for name, _ in self._visits)

    def all_steps(self) -> Iterator[RecordedStep]:
        """Yield all visits, those of fan-outs of an action's own too."""
        yield from self._visits.values()

    def own_fan_outs(self, step: RecordedStep) -> list[RecordedStep]:
        """Return the fan-outs that the action of a step has started itself."""
        return [one for one in self._visits.values() if one.name.startswith(f"{step.name}/")]

    @property
    def place(self) -> str:
        """Its path as text, for people."""
        return path_text(self.path)


# -- a whole run ----------------------------------------------------------------------------------


@final
class Recording:
    """A stored run with all its descendants."""

    def __init__(self, data: Data) -> None:
        """Take the data of a run apart.

        Raises:
            BadUse: It is not the data of a run, or of a later version of shoal.
        """
        if data.get("format") != FORMAT:
            msg = (
                f"this is no recorded run that this version of shoal can read: its format is "
                f"{data.get('format')!r}, and not {FORMAT!r}; write it anew with `shoal export "
                f"RUN --as-test`"
            )
            raise BadUse(msg)
        self.data: Data = data
        self.run_id: str = data["run"]
        self.application: str = data["application"]
        self.root: RecordedRun = RecordedRun(
            data, RunPath(run_id=self.run_id), None, data.get("visits", {})
        )
        # Number of the last update, budget, key, unit, and what was spent by the names of actions.
        self._spent: list[tuple[int, str, str, str, dict[str, float]]] = [
            (one["number"], *one["data"][:3], one["data"][5])
            for one in data.get("history", ())
            if one["kind"] == "spent"
        ]
        self._runs: dict[RunPath, RecordedRun] = {}
        walked = [self.root]
        while walked:
            run = walked.pop()
            self._runs[run.path] = run
            walked += [child for step in run.all_steps() for child in step.children.values()]

    def find(self, path: RunPath) -> RecordedRun | None:
        """Return a run; None if there is none of that path."""
        return self._runs.get(path)

    def spent(self, action: str, number: int) -> dict[str, float]:
        """Return what an action had spent up to an update of the root run, by units."""
        levels = dict[tuple[str, str, str], float]()
        for at, budget, key, unit, by in self._spent:
            if at <= number and action in by:
                levels[budget, key, unit] = by[action]
        found = dict[tuple[str, str], float]()
        for (budget, _, unit), spent in levels.items():
            found[budget, unit] = found.get((budget, unit), 0.0) + spent
        units = dict[str, float]()
        for (_, unit), spent in found.items():
            units[unit] = max(units.get(unit, 0.0), spent)  # two budgets count the same cost
        return units

    def __len__(self) -> int:
        """Count the runs."""
        return len(self._runs)


async def read_run(store: Store, run_id: str, others: Sequence[Store] = ()) -> Data:
    """Read a run with all its descendants from a store.

    Args:
        store: The store.
        run_id: The run.
        others: Stores that may have the histories of descendants: those of fan-outs.

    Raises:
        UnknownRun: The store has no such run.
        BadUse: The store can't be read in that way.
    """
    if not isinstance(store, Inspects):
        msg = (
            f"{type(store).__name__} can't be replayed from: it doesn't implement "
            f"shoal.stores.Inspects"
        )
        raise BadUse(msg)
    path = RunPath(run_id=run_id)
    row, record = await store.row(path), await store.load(run_id)
    if row is None or record is None:
        msg = f"there is no run {run_id!r} in the store"
        raise UnknownRun(msg, await similar_run(store, run_id))
    begun = record.beginning
    since = row.began_at or 0.0
    data: Data = {
        "format": FORMAT,
        "application": begun.application,
        "version": begun.version,
        "run": run_id,
        "status": row.status,
        **({"error_text": row.error} if row.error else {}),
        **({"reason": row.reason} if row.reason else {}),
        "first": json.loads(await store.text(path, "first") or "{}"),
        **(
            {"secret": {name: f"<{name}>" for name in sorted(begun.secret)}} if begun.secret else {}
        ),
        **({"after": begun.after} if begun.after is not None else {}),
        **({"visits": dict(begun.visits)} if begun.visits else {}),
    }
    more = [one for one in others if isinstance(one, Inspects)]
    stores: list[Inspects] = [store, *more]
    await _read_below(stores, path, data, since)
    return data


async def _read_below(stores: Sequence[Inspects], path: RunPath, data: Data, since: float) -> None:
    """Add the history and the children of a run to its data, and those of its descendants."""
    walked = [(path, data)]
    while walked:  # a stack, since recursion may be deep
        at, into = walked.pop()
        into["history"] = []
        children = dict[str, Data]()
        for store in stores:
            into["history"] = into["history"] or await _history(store, at, since)
            after: str | None = None
            while True:
                page = await store.rows(at, order="position", after=after, limit=_PAGE)
                for row in page.rows:
                    name = _name(row.path)
                    if name not in children:
                        children[name] = await _child(store, row, since)
                        walked.append((row.path, children[name]))
                after = page.after
                if after is None:
                    break
        if children:
            into["children"] = list(children.values())
        if into["history"]:
            into.pop("value", None)  # its last update has it
        else:
            del into["history"]


async def _history(store: Inspects, path: RunPath, since: float) -> list[Data]:
    found, number = list[Data](), cast("int | None", 0)
    while number is not None:
        entries, number = await store.entries(path, kinds=_KINDS, from_number=number, limit=_PAGE)
        for one in entries:
            entry: Data = {"kind": one.kind}
            if one.step:
                entry["step"] = one.step
            if one.at is not None:
                entry["at"] = round(one.at - since, 6)
            if one.child is not None:
                entry["child"] = _name(one.child.path)
            if one.kind == "spent":
                entry["number"] = one.number
            entry["data"] = json.loads(one.data)
            if one.kind == "begun":  # the rest is how a resume would compare it
                entry["data"] = {"acts": entry["data"].get("acts", [])}
            found.append(entry)
    return found


async def _child(store: Inspects, row: Row, since: float) -> Data:
    data: Data = {"path": _name(row.path), "status": row.status, "position": row.position}
    if row.attempts != 1:
        data["attempts"] = row.attempts
    if not row.used:
        data["used"] = False
    if row.reason:
        data["reason"] = row.reason
    if row.winner is not None:
        data["winner"] = _name(row.winner)
    if row.applied is not None:
        data["applied"] = row.applied
    if row.ended_at is not None:
        data["ended"] = round(row.ended_at - since, 6)
    if row.status == "failed":
        error = await store.text(row.path, "error")
        data["error"] = None if error is None else without_places(json.loads(error))
        data["error_text"] = row.error
        if row.failed_step:
            data["failed_step"] = row.failed_step
    elif row.status == "succeeded":
        value = await store.text(row.path, "value")
        if value is not None:
            data["value"] = json.loads(value)
    return data


def _name(path: RunPath) -> str:
    return path_text(path).rpartition("/")[2]


def without_places(value: Any) -> Any:
    """Return stored JSON without the tracebacks of errors in it."""
    if isinstance(value, list):
        return [without_places(one) for one in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    data = cast("Data", value)
    is_error = data.get("@") == "error" or data.get("@type") == "shoal:ErrorInfo"
    return {
        name: without_places(one)
        for name, one in data.items()
        if not (is_error and name in _PLACES)
    }
