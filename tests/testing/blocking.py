"""A function that blocks its thread, for tests of what finds that."""

from __future__ import annotations

from _thread import start_new_thread
from time import monotonic, sleep  # by name: the detector under these tests is not asked


def hold_up(seconds: float) -> None:
    """Block for some time, and until a thread that slept so long has woken on a busy machine."""
    woken: list[float] = []

    def wait() -> None:
        sleep(seconds)
        woken.append(monotonic())

    start_new_thread(wait, ())
    while not woken:
        sleep(seconds / 10)
