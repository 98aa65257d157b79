"""`no_blocking`: no step of a task may hold up the event loop for long.

A thread looks at the step that runs, several times in the allowed time. It never calls into the
loop, so virtual time is not disturbed.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from _thread import start_new_thread
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import final

from shoal.testing._stacks import printed
from shoal.testing._steps import steps_of_this_loop

_LOOKS = 4  # within the allowed time: a step is seen before it is a quarter above that
_SHOWN = 12  # innermost frames


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A step that held up the event loop.

    Attributes:
        task: the name of the task; "" if it was a callback.
        seconds: for how long, in real time.
        stack: where it stood, as a traceback prints it.
    """

    task: str
    seconds: float
    stack: str

    def __str__(self) -> str:
        """Return it as text for people."""
        who = f"task {self.task!r}" if self.task else "a callback"
        return f"{who} held up the event loop for {self.seconds:.3g} s, and stood at\n{self.stack}"


@final
class BlockingError(AssertionError):
    """Tasks have held up the event loop inside `no_blocking`.

    Attributes:
        blocked: the steps that took too long, in order.
    """

    def __init__(self, blocked: tuple[Blocked, ...]) -> None:
        self.blocked = blocked
        steps = "\n- ".join(str(one).rstrip("\n") for one in blocked)
        super().__init__(
            f"called inside no_blocking():\n- {steps}\n"
            f"HINT: nothing else runs meanwhile, and no timeout fires. Call it in a thread "
            f"(anyio.to_thread.run_sync, or an action that is a plain def), or in a process "
            f"(executor='processes')"
        )


@asynccontextmanager
async def no_blocking(longest: float = 0.1) -> AsyncGenerator[None]:
    """Check on leaving that no step of a task held up the event loop inside.

    A step is what a task does from one ``await`` that waits to the next. It is measured in real
    time, also under virtual time, so allow more than the machine may be late.

    If the block raises or is cancelled, the exception goes on unchanged and nothing is checked.

    Args:
        longest: seconds that a step may take.

    Raises:
        BlockingError: the message says which task blocked the loop, where, and for how long.
    """
    watch = _Watch(longest)
    steps = steps_of_this_loop(watch.on_step, reason="")
    with steps:
        watch.begin()
        try:
            yield
        finally:
            watch.end()
    if watch.blocked:
        raise BlockingError(watch.blocked)


@final
class _Watch:
    """Notes when each step begins, and has a thread look where a long one stands."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._loop_thread = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):  # on trio
            self._loop = asyncio.get_running_loop()
        # When the step began that runs, or has run last. The thread reads it at any moment.
        self._began_at = monotonic()
        self._is_over = False
        self._blocked: dict[float, Blocked] = {}

    @property
    def blocked(self) -> tuple[Blocked, ...]:
        """The steps that took too long."""
        return tuple(self._blocked.values())

    def begin(self) -> None:
        self._began_at = monotonic()
        # Not a `threading.Thread`: starting and joining one blocks this thread, and virtual time
        # would wait for it. This one calls nobody, and ends by itself a moment after the block. A
        # coverage tool doesn't trace it.
        start_new_thread(self._look, ())

    def end(self) -> None:
        self._is_over = True

    def on_step(self) -> None:
        self._began_at = monotonic()

    def _look(self) -> None:  # pragma: no cover # in a bare thread
        while not self._is_over:
            sleep(self._longest / _LOOKS)
            began_at, now = self._began_at, monotonic()
            if now - began_at < self._longest:
                continue
            frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]  # there is no public way
            if frame is None:
                continue
            known = self._blocked.get(began_at)
            stack = traceback.extract_stack(frame, limit=_SHOWN)
            if _waits(stack[-1]) or self._began_at != began_at or self._is_over:
                continue  # the step has ended, and the loop has nothing to do
            self._blocked[began_at] = Blocked(
                task=self._task_at(frame) if known is None else known.task,
                seconds=now - began_at,
                stack=printed(_behind(stack), indent="    ") if known is None else known.stack,
            )

    def _task_at(self, frame: FrameType | None) -> str:  # pragma: no cover # in a bare thread
        """Return the name of the task that is at work."""
        if self._loop is not None:
            task = asyncio.current_task(self._loop)
            return "" if task is None else task.get_name()
        while frame is not None:
            if frame.f_code.co_name == "unrolled_run":  # trio's loop, which steps the task
                return str(getattr(frame.f_locals.get("task"), "name", ""))
            frame = frame.f_back
        return ""


def _waits(innermost: FrameSummary) -> bool:  # pragma: no cover # in a bare thread
    """Return whether the loop itself waits for the next event."""
    name, file = innermost.name, innermost.filename.replace("\\", "/")
    return (name == "select" and file.endswith("/selectors.py")) or (
        name == "get_events" and "/trio/" in file
    )


def _behind(stack: StackSummary) -> StackSummary:  # pragma: no cover # in a bare thread
    """Return the frames that the loop has called, without its own."""
    machinery = ("/asyncio/", "/anyio/", "/trio/")
    own = [
        at
        for at, frame in enumerate(stack)
        if any(part in frame.filename.replace("\\", "/") for part in machinery)
    ]
    start = own[-1] + 1 if own else 0
    return StackSummary.from_list(stack[start:] or stack[-1:])
