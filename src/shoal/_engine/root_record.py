"""``RootRecord``: a root run as a store sees it in a save that changes nothing of its state."""

from __future__ import annotations

from typing import NoReturn, final

from shoal._events.events import ChildName, Status, Update
from shoal._events.identity import RunPath


@final
class RootRecord:
    """Names the root run in a save of what was spent, which any task of the execution may make.

    Only the run's own task commits to a run. This save adds nothing to its state, and needs nothing
    of it but the identity.
    """

    __slots__ = ("path",)

    position: int = 0
    element: object = None
    digest: str = ""
    status: Status | None = None
    reason: str = ""
    winner: ChildName | None = None
    error: BaseException | None = None
    step: str | None = None
    used: bool = True
    value: object = None
    attempts: int = 0
    elapsed: float = 0.0
    abandoned: bool = False
    crashes: int = 0
    last_update: Update | None = None
    packed: object = None

    def __init__(self, path: RunPath) -> None:
        self.path: RunPath = path

    @property
    def outcome(self) -> NoReturn:
        """Refuse: a root run has no outcome."""
        raise AssertionError(f"run {self.path.id} is a root run, and has no outcome")
