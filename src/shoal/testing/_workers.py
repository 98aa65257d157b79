"""Tell threads that have work to do from threads that wait for their next job."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress


def working_threads() -> Iterator[threading.Thread]:
    """Return all threads except the idle workers that a backend keeps."""
    return itertools.filterfalse(_is_idle_worker, threading.enumerate())


def may_be_called(bystanders: Collection[threading.Thread]) -> bool:
    """Return whether another thread may still call into the loop of this thread.

    A thread that is not among ``bystanders`` may, because it was started later. If this thread is
    not the main one, the thread that started it may: anyio's blocking portals work that way.
    """
    if threading.current_thread() is not threading.main_thread():
        return True
    return any(thread not in bystanders for thread in working_threads())


def is_owed(token: object) -> bool:
    """Return whether a thread says that tasks of an event loop wait for it, as stores' threads do.

    Args:
        token: The loop; on trio, its token.
    """
    asked = (getattr(thread, "owes", None) for thread in threading.enumerate())
    return any(owes is not None and owes(token) for owes in asked)


def _is_idle_worker(thread: threading.Thread) -> bool:
    # anyio's, on asyncio: known by an attribute, because the class is private.
    if thread in getattr(thread, "idle_workers", ()):
        return True
    # A trio worker has the name of its job while it has one.
    if re.fullmatch(r"Trio thread \d+", thread.name):
        return True
    # A debugger's or a C library's thread that was seen by chance: never removed from the list.
    if isinstance(thread, threading._DummyThread):  # pyright: ignore[reportPrivateUsage]
        return True
    return thread in _default_executor_threads()


def _default_executor_threads() -> frozenset[threading.Thread]:
    with suppress(RuntimeError):  # on trio
        executor = getattr(asyncio.get_running_loop(), "_default_executor", None)
        return frozenset(getattr(executor, "_threads", ()))
    return frozenset()
