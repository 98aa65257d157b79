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


def _restarts(program: Program, violation: str) -> bool:
    left = ("the history of", "is still running in", "the ledger of")
    return program["until"] == "restart" and any(words in violation for words in left)


def _asks_for_ever(program: Program, violation: str) -> bool:
    is_race = program["until"] in ("first_item", "restart")
    return is_race and program["asks"] == "yes" and "comes to no end" in violation


def _has_no_ledger(program: Program, violation: str) -> bool:
    is_own = program["form"] in ("start", "start_each") and program["width"] == "0"
    return is_own and ("there is no ledger" in violation or "run again with" in violation)


def _is_poisoned(program: Program, violation: str) -> bool:
    return program["store"] == "own" and "Poisoned" in violation


KNOWN: Sequence[Known] = (
    Known("after a crash, a store of a fan-out's own counts attempts as crashes", _is_poisoned),
    Known("ledgers of an action's own fan-outs without children, after a resume", _has_no_ledger),
    Known("races by first_item whose winners ask anew in each life", _asks_for_ever),
    Known("restarted races: children that begin afresh, and are interrupted", _restarts),
)


def is_known(program: Program, violations: Sequence[str]) -> bool:
    """Tell whether all of that is known."""
    return all(any(known.is_it(program, one) for known in KNOWN) for one in violations)
