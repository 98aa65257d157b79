"""One life of a process that is to be killed: what it writes down, and where it dies.

Imports nothing of the harness. Actions, sources and hooks of the scenarios speak to `LIFE`.

What holds:

- A line that was written is there, whatever happens to the process then: one write, appended.
- A process dies only after an effect that no life before has had. So each kill takes something
  away, and since a run has only so many effects, it comes to its end however often it is killed.
"""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from shoal import Context, RunPath

PHASES = (
    "source",  # while elements are pulled, or found by `grow`
    "child",  # in the body of an action, before its work or after it
    "decision",  # at the save of a race's decision: before it, in its transaction, after it
    "batch save",  # at any save, before it is kept: on the loop, or in the open transaction
    "after save",  # when it is kept: before the loop knows, or before it is published
    "cleanup",  # in an action that was cancelled
    "finish",  # at the save of a root run's end, and when the run is given back
    "outside",  # at whatever moment, by another process
)


@dataclass(frozen=True)
class Death:
    """Where a life is to end: the n-th time that its process comes by such a place."""

    phase: str
    passage: int

    def __str__(self) -> str:
        return f"{self.phase} {self.passage}"


def lines(file: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a file; another process may be about to append one."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def append(file: Path, **line: Any) -> None:
    """Append a line, by a single write."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)


class Life:
    """What the actions, sources and hooks of this process speak to."""

    def __init__(self, folder: Path, number: int, death: Death | None) -> None:
        self.folder = folder
        self.effects = folder / "effects"
        """Each body of an action, at its beginning and at its end."""
        self.told = folder / "told"
        """What the hook was told."""
        self.number = number
        self.is_armed = False
        self._death = death
        self._ends = defaultdict[tuple[str, str], anyio.Event](anyio.Event)  # by parent and act
        self._known = {name_of(line) for line in lines(self.effects) if line["kind"] == "end"}
        self._is_news = False  # whether it has had an effect that is new

    def note(self, kind: str, context: Context) -> None:
        """Write down that the body of an action begins, or how it ended."""
        above = list[str]()
        path = context.path
        while path is not None:
            above.append(path.id)
            path = path.parent
        visit = context._run.visit(context.step)
        effect = {"run": context.run_id, "step": context.step, "visit": visit}
        key = context.idempotency_key
        append(self.effects, life=self.number, kind=kind, above=above, key=key, **effect)
        self._is_news |= kind == "end" and name_of(effect) not in self._known

    def note_end(self, path: RunPath) -> None:
        """Let those go on that wait for the end of this child. The store has that end."""
        assert path.parent is not None, "it is a child"
        self._ends[path.parent.id, path.act].set()

    async def wait_ended(self, act: str, *, beside: RunPath) -> None:
        """Wait until the store has the end of a sibling."""
        assert beside.parent is not None, "it is a child"
        await self._ends[beside.parent.id, act].wait()

    def passes(self, phase: str) -> None:
        """Come by a place of this phase; die there, if that is it."""
        death = self._death
        if death is None or not self.is_armed or not self._is_news or death.phase != phase:
            return
        self._death = Death(phase, death.passage - 1)
        if not self._death.passage:
            os.kill(os.getpid(), signal.SIGKILL)


def name_of(line: dict[str, Any]) -> tuple[str, str, int]:
    """Name the step that a line is about."""
    return line["run"], line["step"], line["visit"]


_life: Life | None = None


def begin(life: Life) -> None:
    """Have this process live it."""
    global _life  # noqa: PLW0603 # actions are defined once, and have to know
    _life = life


def current() -> Life:
    """Return the life that this process lives."""
    assert _life is not None, "it has begun"
    return _life


def passes(phase: str) -> None:
    """Come by a place of this phase."""
    current().passes(phase)


@asynccontextmanager
async def effect(context: Context) -> AsyncGenerator[None]:
    """Write down the body of an action that this is around."""
    life = current()
    life.note("begin", context)
    passes("child")
    try:
        yield
    except anyio.get_cancelled_exc_class():
        passes("cleanup")
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.001)
        passes("cleanup")
        raise
    except Exception:
        life.note("failure", context)
        raise
    life.note("end", context)
    passes("child")
