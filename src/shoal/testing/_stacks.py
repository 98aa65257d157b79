"""Where a task or a thread stands: the stack through everything that it awaits. Imports drive.

asyncio's own ``Task.get_stack`` shows the outermost frame of a suspended task alone; what it waits
for is at the other end.
"""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType

from shoal._concurrency.cancellation import drive

_SHOWN = 8  # innermost frames; the rest is how the test got there
_MACHINERY = {"anyio", "asyncio", "trio"}

# How coroutines, generators and async generators call their frame and what they await.
_LINKS = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))

# These hide the object that they drive; the collector sees through them (as trio does).
_OPAQUE = {
    "async_generator_asend",
    "async_generator_athrow",
    "anext_awaitable",
    "coroutine_wrapper",
}


def suspended_frames(awaitable: object) -> Iterator[FrameType]:
    """The frames of a suspended coroutine, outermost first, through everything it awaits."""
    current: object = awaitable
    while current is not None:
        for frame_name, next_name in _LINKS:
            if hasattr(current, frame_name):
                frame: FrameType | None = getattr(current, frame_name)
                if frame is not None:  # None once it has ended
                    yield frame
                current = getattr(current, next_name)
                if frame is not None and frame.f_code is drive.__code__:  # it awaits by hand
                    current = frame.f_locals["coroutine"]
                break
        else:
            current = _driven_by(current)


def _driven_by(awaitable: object) -> object:
    if type(awaitable).__name__ not in _OPAQUE:
        return None  # a future, or something written in C: the end of what can be seen
    for referent in gc.get_referents(awaitable):
        if any(hasattr(referent, name) for name, _ in _LINKS):
            return referent
    return None


def where_task_stands(coroutine: object, *, indent: str) -> str:
    """The innermost frames of a suspended coroutine, as a traceback prints them."""
    return printed(stack_of(coroutine), indent=indent)


def stack_of(coroutine: object) -> traceback.StackSummary:
    """The innermost frames of a suspended coroutine, for printing them later.

    Of the backends' own frames only those that user code called.
    """
    frames = list(suspended_frames(coroutine))
    called = [
        frame
        for caller, frame in zip([None, *frames], frames, strict=False)
        if not _is_machinery(frame) or (caller is not None and not _is_machinery(caller))
    ]
    shown = (called or frames)[-_SHOWN:]
    lines = ((frame, frame.f_lineno) for frame in shown)
    return traceback.StackSummary.extract(lines, lookup_lines=False)  # read when printed


def _is_machinery(frame: FrameType) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _MACHINERY


def where_thread_stands(thread: threading.Thread, *, indent: str) -> str:
    """The innermost frames of a running thread, as a traceback prints them."""
    frame = sys._current_frames().get(thread.ident or 0)  # pyright: ignore[reportPrivateUsage]  # the only way to ask
    if frame is None:
        return f"{indent}(it has just ended)\n"
    return printed(traceback.extract_stack(frame, limit=_SHOWN), indent=indent)


def printed(stack: traceback.StackSummary, *, indent: str) -> str:
    """A stack, as a traceback prints it."""
    lines = "".join(stack.format()).splitlines() or ["  (no Python frame)"]
    # `format` indents by two itself.
    return "".join(f"{indent}{line.removeprefix('  ')}\n" for line in lines)
