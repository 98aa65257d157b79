"""`Violation`: what must hold in a simulated run, and didn't."""

from __future__ import annotations

from typing import final


@final
class Violation(AssertionError):
    """Something that must hold in a simulated run, and did not.

    ``kind`` says what in a few words. Two runs that fail in one kind fail for one reason, as far as
    making a plan smaller goes.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)
