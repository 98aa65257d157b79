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


def _says(*texts: str) -> Callable[[Program, str], bool]:
    return lambda program, violation: any(text in violation for text in texts)


def _is_unapplied(program: Program, violation: str) -> bool:
    texts = ("was Done, and", "was succeeded, and is", "was completed, and is executed again")
    return any(text in violation for text in texts)


def _is_lost(program: Program, violation: str) -> bool:
    texts = ("missing", "must fail", "nobody's", "the ledger of", "fails for good", "have won")
    return any(text in violation for text in texts)


def _is_torn_down(program: Program, violation: str) -> bool:
    return "was never awaited" in violation or (
        "hangs" in violation and any(trip.what == "teardown" for trip in program.trips)
    )


def _has_changed(program: Program, violation: str) -> bool:
    return program["change"] != "no"


def _waits_to_start(program: Program, violation: str) -> bool:
    return "hangs" in violation and program["stagger"] != "no"


KNOWN: Sequence[Known] = (
    Known("what is Done becomes another outcome, or is executed again", _is_unapplied),
    Known("elements vanish in a retry; races forget who has won", _is_lost),
    Known("not modelled: a changed program has children decide anew",
          lambda program, violation: program["change"] != "no" and "decided twice" in violation),
    Known("not modelled: nested fan-outs that both programs have begun",
          lambda program, violation: program["change"] == "folded" and "RunConflict" in violation),
    Known("tasks torn down before they begin", _is_torn_down),
    Known("stagger= waits for ever where nothing is left to start", _waits_to_start),
    Known("a skipped key is told and not saved", _says("Skipped(")),
    Known("ledgers of what nobody was started in", _says("run again with")),
)  # fmt: skip


def is_known(program: Program, violations: Sequence[str]) -> bool:
    """Tell whether all of that is known."""
    return all(any(known.is_it(program, one) for known in KNOWN) for one in violations)
