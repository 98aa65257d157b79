"""Find the line where a task or a thread stands, through all that the task awaits.

asyncio's own ``Task.get_stack`` returns only the outermost frame of a suspended task, and the line
where it waits is at the other end.
"""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType

from shoal._concurrency.watchdog import resumes_by_hand

_SHOWN = 8  # innermost frames; those further out show how the test got there
_MACHINERY = {"anyio", "asyncio", "trio"}

# The attributes of coroutines, generators and async generators for their frame and their awaitable.
_LINKS = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))

# These hide the object that they drive. The garbage collector shows it, and trio uses that too.
_OPAQUE = {
    "async_generator_asend",
    "async_generator_athrow",
    "anext_awaitable",
    "coroutine_wrapper",
}


def suspended_frames(awaitable: object) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine, outermost first, through all that it awaits."""
    current: object = awaitable
    while current is not None:
        for frame_name, next_name in _LINKS:
            if hasattr(current, frame_name):
                frame: FrameType | None = getattr(current, frame_name)
                if frame is not None:  # None once it has ended
                    yield frame
                current = getattr(current, next_name)
                if frame is not None and resumes_by_hand(frame):
                    current = frame.f_locals["coroutine"]
                break
        else:
            current = _driven_by(current)


def _driven_by(awaitable: object) -> object:
    if type(awaitable).__name__ not in _OPAQUE:
        return None  # a future, or an object written in C, which shows nothing
    for referent in gc.get_referents(awaitable):
        if any(hasattr(referent, name) for name, _ in _LINKS):
            return referent
    return None


def where_task_stands(coroutine: object, *, indent: str) -> str:
    """Return the innermost frames of a suspended coroutine, as a traceback prints them."""
    return printed(stack_of(coroutine), indent=indent)


def stack_of(coroutine: object) -> traceback.StackSummary:
    """Return the innermost frames of a suspended coroutine, for printing them later.

    Frames of the backends are left out, except those that user code called.
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
    """Return the innermost frames of a running thread, as a traceback prints them."""
    frame = sys._current_frames().get(thread.ident or 0)  # pyright: ignore[reportPrivateUsage]  # there is no public way
    if frame is None:
        return f"{indent}(it has just ended)\n"
    return printed(traceback.extract_stack(frame, limit=_SHOWN), indent=indent)


def printed(stack: traceback.StackSummary, *, indent: str) -> str:
    """Return a stack as a traceback prints it."""
    lines = "".join(stack.format()).splitlines() or ["  (no Python frame)"]
    # `format` itself indents by two.
    return "".join(f"{indent}{line.removeprefix('  ')}\n" for line in lines)
