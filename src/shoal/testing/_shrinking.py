"""Making what fails small: one part after another is left out, as long as it fails in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def shrink(
    subject: T,
    found: R,
    simpler: Callable[[T], Iterable[T]],
    fails: Callable[[T], R | None],
    *,
    tries: int,
) -> tuple[T, R, int]:
    """Return the smallest subject that was found to fail, how it fails, and the tries it took.

    Args:
        subject: What fails.
        found: How it does.
        simpler: Yields subjects that are simpler than one in one thing, the most promising first.
        fails: Tries a subject; returns how it fails, or None if it doesn't, or in another way.
        tries: The most tries.
    """
    left = tries
    goes_on = True
    while goes_on:
        goes_on = False
        for other in simpler(subject):
            if not left:
                break
            left -= 1
            again = fails(other)
            if again is not None:
                subject, found, goes_on = other, again, True
                break
    return subject, found, tries - left
