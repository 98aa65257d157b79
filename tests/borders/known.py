"""What is known to be wrong, and not mended yet: such violations don't fail the gate.

Each entry is to be deleted with its mend; `python -m tests.borders` shows all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .program import Program


class Known(NamedTuple):
    """A defect."""

    what: str
    is_it: Callable[[Program, str], bool]


KNOWN: Sequence[Known] = ()


def is_known(program: Program, violations: Sequence[str]) -> bool:
    """Tell whether all of that is known."""
    return all(any(known.is_it(program, one) for known in KNOWN) for one in violations)
