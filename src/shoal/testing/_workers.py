"""Threads: which have work to do, and which only wait for their next job. Imports no shoal."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress


def working_threads() -> Iterator[threading.Thread]:
    """All threads but the idle workers that a backend keeps."""
    return itertools.filterfalse(_is_idle_worker, threading.enumerate())


def may_be_called(bystanders: Collection[threading.Thread]) -> bool:
    """Whether another thread may yet call into the loop of this thread.

    One born since the bystanders were counted may. So may whoever started this thread, if it isn't
    the main one: that is how anyio's blocking portals work.
    """
    if threading.current_thread() is not threading.main_thread():
        return True
    return any(thread not in bystanders for thread in working_threads())


def is_owed(token: object) -> bool:
    """Whether tasks of an event loop wait for a thread that says so itself, as stores' do.

    Args:
        token: The loop; on trio, its token.
    """
    asked = (getattr(thread, "owes", None) for thread in threading.enumerate())
    return any(owes is not None and owes(token) for owes in asked)


def _is_idle_worker(thread: threading.Thread) -> bool:
    # anyio's on asyncio. Known by its attributes, for its class is private.
    if thread in getattr(thread, "idle_workers", ()):
        return True
    # Trio's bear the name of their job while they have one.
    if re.fullmatch(r"Trio thread \d+", thread.name):
        return True
    # A debugger's or a C library's, seen by chance: never removed from the list.
    if isinstance(thread, threading._DummyThread):  # pyright: ignore[reportPrivateUsage]
        return True
    return thread in _default_executor_threads()


def _default_executor_threads() -> frozenset[threading.Thread]:
    with suppress(RuntimeError):  # on trio
        executor = getattr(asyncio.get_running_loop(), "_default_executor", None)
        return frozenset(getattr(executor, "_threads", ()))
    return frozenset()
