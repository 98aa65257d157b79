"""Leave frames out of tracebacks that tell a user nothing: those of shoal and of event loops.

Between the line that calls ``app.run`` and the line of an action that failed, a traceback has a
dozen frames of shoal, and in ``run_sync`` those of the event loop as well.

Invariants:
- An exception that was raised by shoal keeps its innermost frame. One that only a defect of shoal
  can have raised keeps all of them.
- Frames of other packages stay wherever the user's own code has called them.
- Only tracebacks change; nothing here calls code of an exception's class.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Final, cast, final

from .exceptions import ShoalError
from .inspection import cause_of, context_of, members

VARIABLE = "SHOAL_TRACEBACKS"
"""The environment variable that, set to ``full``, keeps all frames."""
_OURS = __name__.partition(".")[0]
_LOOPS = frozenset(
    [
        "anyio",
        "asyncio",
        "concurrent",
        "contextlib",
        "outcome",
        "sniffio",
        "threading",
        "trio",
        "uvloop",
    ]
)
"""Packages whose frames are left out where shoal has called them."""


def hide_frames(error: BaseException) -> None:
    """Leave the frames out of ``error``, the errors in it, and their causes and contexts."""
    if os.environ.get(VARIABLE) == "full":
        return
    seen: set[int] = set()  # causes and contexts may lead in circles
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        BaseException.with_traceback(one, _shortened(one))
        left += (cause_of(one), context_of(one))
        if isinstance(one, BaseExceptionGroup):
            left += members(cast("BaseExceptionGroup[BaseException]", one))


def _shortened(error: BaseException) -> TracebackType | None:
    # By the descriptor: the exception's class may define an attribute of this name.
    first: TracebackType | None = vars(BaseException)["__traceback__"].__get__(error)
    kept: list[TracebackType] = []
    below_ours = False  # whether nothing but loops lies between this frame and one of shoal
    entry = last = first
    while entry is not None:
        package = str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        below_ours = package == _OURS or (below_ours and package in _LOOPS)
        if not below_ours:
            kept.append(entry)
        entry, last = entry.tb_next, entry
    if below_ours and last is not None:
        if not kept and not isinstance(error, ShoalError | BaseExceptionGroup):
            return first  # no user code has raised this: a report of it needs the frames
        kept.append(last)
    shortened: TracebackType | None = None
    for entry in reversed(kept):
        # Made anew, since other exceptions may share the entries.
        shortened = TracebackType(shortened, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return shortened


@final
class _FramesHidden:
    """Shortens the traceback of the exception that leaves its block."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: object, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        # The entry of the frame that has this block is there already, and is left out as well: an
        # exception that is raised again gets no second entry. Cancellations and interrupts go by.
        if isinstance(error, Exception):
            hide_frames(error)


frames_hidden: Final = _FramesHidden()
"""A block around what a user calls."""
