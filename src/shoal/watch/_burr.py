"""Write runs as the logs that Burr's own UI reads.

Each run is a directory ``PROJECT/APP`` with ``graph.json``, ``metadata.json``, ``log.jsonl`` and,
if it has children, ``children.jsonl``. Burr's UI reads all directories of a project for its list,
so a run is written with some of its children only: the winners of races, failed ones, and the
slowest. Burr is not needed for writing.

What Burr has no field for is in attributes of a step, and in the text of an exception: why a run
was cancelled, counts of children, attempts.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, NamedTuple, final

from anyio import to_thread

from shoal._events.identity import RunPath
from shoal._events.paths import path_text
from shoal.stores._protocol import RunSummary
from shoal.stores._watching import Inspects, Row

from ._stored import apply, closed, entries_of, opened
from ._words import shortened

MOST_CHILDREN = 200
"""Burr's UI takes 0.3 s for its list of 500 runs, and 3 s for 3,000."""
_MOST_STEPS = 2_000
"""Steps of one run that are written: the UI loads all of them twice a second."""
_LARGEST = 10_000
"""Characters of a field as JSON; a larger one is shortened, since it is written after each step."""


@final
class BurrExport(NamedTuple):
    """What was written."""

    directory: Path
    """The directory that Burr's UI is started with: ``burr_path``."""
    project: str
    """Its subdirectory: a project of Burr's."""
    app_id: str
    """The run's directory in the project."""
    written: int
    """How many runs were written: this one and children."""
    omitted: int
    """How many children were left out."""


async def export_burr(
    store: Inspects,
    row: Row,
    summary: RunSummary,
    directory: str | PurePath,
    *,
    max_children: int = MOST_CHILDREN,
    project: str | None = None,
) -> BurrExport:
    """Write a run, and some of its children, as logs for Burr's UI.

    An earlier export of the same run is overwritten.

    Args:
        store: The store.
        row: The run.
        summary: Its root run.
        directory: Where to write; it is created.
        max_children: Write at most so many descendants: of each run first the winners of its races,
            then failed ones, then the slowest.
        project: The name of Burr's project; by default that of the application.

    Raises:
        OSError: The files can't be written.
    """
    name = _slug(project or f"shoal-{summary.application}")
    place = Path(directory) / name
    app_id = _app_id(row.path)
    waiting = deque([_Planned(row)])
    written, omitted, left = list[_Planned](), 0, max_children
    while waiting:
        planned = waiting.popleft()
        written.append(planned)
        children, others = await _chosen(store, planned.row, left)
        omitted += others
        left -= len(children)
        planned.children = children
        planned.omitted = others
        waiting += [_Planned(child, spawned_by=planned.row.path) for child in children]
    sequences = dict[str, Mapping[tuple[str, int], int]]()
    logs = list[tuple[_Planned, _Log]]()
    for planned in written:  # a parent comes before its children
        log = await _log(store, planned)
        sequences[planned.row.path.id] = log.sequences
        logs.append((planned, log))
    # The root run is written last: Burr's list has the run first that was written last.
    for planned, log in reversed(logs):
        files = _files(planned, log, summary, sequences)
        await to_thread.run_sync(_write, place / _app_id(planned.row.path), files)
    return BurrExport(Path(directory), name, app_id, len(written), omitted)


@final
@dataclass(slots=True)
class _Planned:
    """A run that will be written."""

    row: Row
    spawned_by: RunPath | None = None
    children: Sequence[Row] = ()
    omitted: int = 0


@final
@dataclass(slots=True)
class _Log:
    """The log of a run."""

    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    steps: list[str] = field(default_factory=list[str])
    """The names of its steps, in order: the index is Burr's sequence id."""
    writes: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """The fields that each step has written."""
    sequences: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    """The sequence id of each visit of a step."""


async def _chosen(store: Inspects, row: Row, left: int) -> tuple[Sequence[Row], int]:
    """Return children of a run to write, and how many are left out."""
    if not row.has_children:
        return (), 0
    total = sum((await store.counts(row.path)).values())
    if left <= 0:
        return (), total
    chosen = dict[str, Row]()
    # A loser names the winner of its race.
    for status in ("cancelled", "failed"):
        for child in (await store.rows(row.path, status=status, limit=left)).rows:
            if child.winner is not None and child.winner.id not in chosen:
                winner = await store.row(child.winner)
                if winner is not None:
                    chosen[winner.path.id] = winner
    failed = await store.rows(row.path, status="failed", limit=max(1, left // 2))
    slowest = await store.rows(row.path, order="slowest", limit=left)
    for child in (*failed.rows, *slowest.rows):
        if len(chosen) < left:
            chosen.setdefault(child.path.id, child)
    found = list(chosen.values())[:left]
    return found, max(0, total - len(found))


async def _log(store: Inspects, planned: _Planned) -> _Log:
    """Read a run's history, and write it as Burr's log."""
    row, log = planned.row, _Log()
    begin = row.began_at or 0.0
    what = "first" if row.path.parent is None else "element"
    text = await store.text(row.path, what)
    state: dict[str, Any] = {}
    if text is not None and what == "first":
        state = {name: opened(value) for name, value in json.loads(text).items()}
    elif text is not None:
        state = {"element": json.loads(text)}
    visits, under_way, last, omitted = Counter[str](), "", begin, 0
    began = begin
    async for entry in entries_of(store, row.path):
        last = entry.at or last
        if entry.kind == "update":
            under_way = entry.step
            fields = log.writes.setdefault(entry.step, set())
            for operation in json.loads(entry.data)["do"]:
                apply(state, *operation)
                fields.add(operation[1])
        elif entry.kind == "completed":
            if len(log.steps) < _MOST_STEPS:
                _begin(log, entry.step, visits, began)
                _end(log, entry.step, last, state, None)
            else:
                omitted += 1
            visits[entry.step] += 1
            under_way, began = "", last
        elif entry.kind == "rewound":
            visits[entry.step] = int(entry.data)
    end = row.ended_at or last
    if row.status == "succeeded":
        if not log.steps:  # a child that wrote nothing of its own
            _begin(log, under_way or row.path.act or "run", visits, begin)
            _end(log, log.steps[-1], end, state, None)
        elif under_way:  # the last step of a child is completed by its end
            _begin(log, under_way, visits, began)
            _end(log, under_way, end, state, None)
    else:
        at = row.failed_step or under_way or await _step_at(store, row, log)
        _begin(log, at, visits, began)
        why = row.error or row.reason
        if row.status in ("failed", "cancelled", "skipped"):
            _end(log, at, end, state, f"{row.status}: {why}" if why else row.status)
    await _attributes(store, planned, log, omitted)
    return log


async def _step_at(store: Inspects, row: Row, log: _Log) -> str:
    """Return a name for the step in which a run has stopped, which has saved nothing of its own.

    A fan-out has children. Of another step the store doesn't know the name.
    """
    for tally in await store.tallies(row.path) if row.has_children else ():
        if (tally.step, tally.visit) not in log.sequences:
            return tally.step
    return f"after {log.steps[-1]}" if log.steps else row.path.act or "first step"


def _begin(log: _Log, step: str, visits: Mapping[str, int], at: float) -> None:
    number = len(log.steps)
    log.steps.append(step)
    log.sequences[step, visits.get(step, 0)] = number
    log.writes.setdefault(step, set())
    log.lines.append(
        {
            "type": "begin_entry",
            "start_time": _time(at),
            "action": step,
            "inputs": {},
            "sequence_id": number,
        }
    )


def _end(log: _Log, step: str, at: float, state: Mapping[str, Any], exception: str | None) -> None:
    shown = {name: _small(closed(value)) for name, value in state.items()}
    written = log.writes.get(step, set())
    log.lines.append(
        {
            "type": "end_entry",
            "end_time": _time(at),
            "action": step,
            "result": {name: value for name, value in shown.items() if name in written},
            "exception": exception,
            "state": shown,
            "sequence_id": len(log.steps) - 1,
        }
    )


def _small(value: Any) -> Any:
    text = json.dumps(value)
    if len(text) <= _LARGEST:
        return value
    return f"{shortened(text, _LARGEST // 10)} ({len(text):,} characters)"


async def _attributes(store: Inspects, planned: _Planned, log: _Log, omitted: int) -> None:
    row = planned.row
    facts = dict[int, dict[str, Any]]()
    for tally in await store.tallies(row.path) if row.has_children else ():
        number = log.sequences.get((tally.step, tally.visit))
        if number is not None:
            facts.setdefault(number, {}).update(
                {f"children.{tally.act}.{status}": many for status, many in tally.counts.items()}
            )
    last = len(log.steps) - 1
    about: dict[str, Any] = {"path": path_text(row.path), "status": row.status}
    about |= {"attempts": row.attempts} if row.attempts > 1 else {}
    about |= {"reason": row.reason} if row.reason else {}
    about |= {"winner": path_text(row.winner)} if row.winner is not None else {}
    about |= {"used": False} if not row.used else {}
    about |= {"children left out": planned.omitted} if planned.omitted else {}
    about |= {"steps left out": omitted} if omitted else {}
    facts.setdefault(last, {}).update(about)
    for number, data in sorted(facts.items()):
        log.lines += [
            {
                "type": "attribute",
                "key": f"shoal.{key}",
                "action_sequence_id": number,
                "span_id": None,
                "value": value,
                "tags": {},
                "time_logged": None,
            }
            for key, value in data.items()
        ]


# -- files -------------------------------------------------------------------------------------


def _files(
    planned: _Planned,
    log: _Log,
    summary: RunSummary,
    sequences: Mapping[str, Mapping[tuple[str, int], int]],
) -> Mapping[str, str]:
    row = planned.row
    spawner = None
    if planned.spawned_by is not None:
        path = row.path
        number = sequences[planned.spawned_by.id].get((path.step, path.visit))
        spawner = _pointer(planned.spawned_by, number)
    forked = None
    if row.path.parent is None and summary.forked_from is not None:
        forked = _pointer(RunPath(run_id=summary.forked_from), None)
    names = list(dict.fromkeys(log.steps))
    edges = dict.fromkeys(zip(log.steps, log.steps[1:], strict=False))
    graph = {
        "type": "application",
        "entrypoint": names[0],
        "actions": [
            {
                "type": "action",
                "name": name,
                "reads": [],
                "writes": sorted(log.writes.get(name, ())),
                "code": "",
                "inputs": [],
                "optional_inputs": [],
            }
            for name in names
        ],
        "transitions": [
            {"type": "transition", "from_": source, "to": to, "condition": "taken"}
            for source, to in edges
        ],
    }
    metadata = {
        "type": "application_metadata",
        "partition_key": None,
        "parent_pointer": forked,
        "spawning_parent_pointer": spawner,
    }
    children = [
        {
            "type": "child_application_data",
            "child": _pointer(child.path, None),
            "event_time": _time(child.began_at or child.ended_at or row.began_at or 0.0),
            "event_type": "spawn_start",
            "sequence_id": log.sequences.get((child.path.step, child.path.visit)),
        }
        for child in planned.children
    ]
    return {
        "graph.json": json.dumps(graph),
        "metadata.json": json.dumps(metadata),
        "children.jsonl": "".join(f"{json.dumps(child)}\n" for child in children),
        "log.jsonl": "".join(f"{json.dumps(line)}\n" for line in log.lines),
    }


def _write(directory: Path, files: Mapping[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text, "utf-8")


def _pointer(path: RunPath, number: int | None) -> dict[str, Any]:
    return {
        "type": "pointer_data",
        "app_id": _app_id(path),
        "sequence_id": number,
        "partition_key": None,
    }


def _app_id(path: RunPath) -> str:
    """Return the name of a run's directory; it has the key for people, and a part of the id."""
    if path.parent is None:
        plain = _slug(path.id)
        return plain if plain == path.id else f"{plain}-{RunPath(parent=path, key='').id[:8]}"
    key = (
        path.key
        if isinstance(path.key, str)
        else f"{path.key:#x}"
        if path.key >> 64
        else f"{path.key}"
    )
    return f"{_slug(path.act)[:30]}-{_slug(key)[:40]}-{path.id[:8]}"


def _slug(text: str) -> str:
    """Replace what Burr's UI, or a file system, doesn't accept in a name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:100] or "run"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
