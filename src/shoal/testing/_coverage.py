"""What a simulation has tried, as a table: which places met which faults, and which met none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import final

from shoal.testing._faults import (
    ACTION,
    CANCELS,
    HOOK,
    OF_ACTIONS,
    OF_READS,
    OF_SAVES,
    READ,
    SAVE,
    STEP,
    Backend,
    Fault,
    Passed,
)


@final
class Coverage:
    """Counts what has happened in the runs of a simulation."""

    def __init__(self, actions: Iterable[str]) -> None:
        """Count nothing yet.

        Args:
            actions: The names of all actions that the program shows before it runs.
        """
        self.actions: tuple[str, ...] = tuple(sorted(actions))
        self.runs: Counter[Backend] = Counter()
        self.ends: Counter[str] = Counter()
        """How the lives have ended, by status."""
        self.called: Counter[str] = Counter()
        """How often each action was called."""
        self.resumed: int | None = None
        """How often a changed application has resumed a run; None: there is none."""
        self.passed: dict[Backend, Passed] = {}
        """How often an undisturbed run passes each place."""
        self._fired: dict[tuple[str, str], set[tuple[Backend, int, int]]] = defaultdict(set)
        self._times: Counter[tuple[str, str]] = Counter()

    def expect_change(self, actions: Iterable[str]) -> None:
        """Expect that a changed application resumes runs, and calls its actions."""
        self.actions = tuple(sorted({*self.actions, *actions}))
        self.resumed = 0

    def add(self, backend: Backend, ends: Iterable[str], called: Mapping[str, int]) -> None:
        """Count a run."""
        self.runs[backend] += 1
        self.ends.update(ends)
        self.called.update(called)

    def add_fault(self, backend: Backend, fault: Fault) -> None:
        """Count a fault that has happened."""
        self._fired[fault.place, fault.what].add((backend, fault.life, fault.nth))
        self._times[fault.place, fault.what] += 1

    def times(self, place: str, what: str) -> int:
        """Return how often something went wrong at a place."""
        return self._times[place, what]

    def reached(self, place: str, what: str) -> int:
        """Return at how many passes of a place that was, of both backends together."""
        return len(self._fired[place, what])

    def total(self, place: str) -> int:
        """Return how often undisturbed runs pass a place, of both backends together."""
        return sum(of_one.get(place, 0) for lives in self.passed.values() for of_one in lives)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        names = sorted({*self.actions, *self.called})
        rows = [
            [name, self.called[name], *(self.times(ACTION + name, what) for what in OF_ACTIONS)]
            for name in names
        ]
        yield from table(["action", "calls", *OF_ACTIONS], rows)
        stores = [
            [
                f"{said} ({self.total(place)})",
                *(self._share(place, what) if what in kinds else "" for what in OF_SAVES),
            ]
            for place, said, kinds in ((SAVE, "saves", OF_SAVES), (READ, "other calls", OF_READS))
        ]
        if self.total(SAVE):
            yield ""
            yield from table(["store", *OF_SAVES], stores)
        yield ""
        places = {place for lives in self.passed.values() for of_one in lives for place in of_one}
        failing = [one for one in places if one.startswith(HOOK)]
        tried = [one for one in failing if self.reached(one, "raises")]
        yield f"hooks failed on {len(tried)} of {len(failing)} kinds of events"
        for what in sorted(CANCELS):
            yield f"{what} before {self._share(STEP, what)} steps of the event loop"
        yield f"the clock jumped before {self._share(STEP, 'jumps')} steps"
        yield from self._unreached(names)

    def _share(self, place: str, what: str) -> str:
        passed = self.passed
        if what == "cancelled-natively":
            passed = {one: of_one for one, of_one in passed.items() if one == "asyncio"}
        total = sum(of_one.get(place, 0) for lives in passed.values() for of_one in lives)
        return f"{min(self.reached(place, what), total)} of {total}"

    def _unreached(self, names: Iterable[str]) -> Iterator[str]:
        uncalled = [name for name in names if not self.called[name]]
        if uncalled:
            yield f"never called: {', '.join(uncalled)}"
        for what in OF_ACTIONS:
            never = [n for n in names if self.called[n] and not self.times(ACTION + n, what)]
            if never:
                yield f"never {what}: {', '.join(never)}"
        if not self.total(SAVE):
            yield "never killed or resumed: the application has no store (durable=True gives one)"
        if self.resumed == 0:
            yield "never resumed by the changed application: no process has ended before its run"


def table(head: list[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table."""
    lines = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    for line in lines:
        first, *others = line
        cells = [
            first.ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)),
        ]
        yield "  ".join(cells).rstrip()
