"""What a run does about actions with ``cache=``. Imports settings, trials and results.

Invariants:
- Only what has succeeded is remembered, would be allowed to be written, and holds no secret.
- What is remembered is looked for before anything is waited for, and once more by who had to wait:
  who had the seat before has remembered it by then.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from ._action import FunctionAction
from ._errors import NotData, UpdateTooLarge
from ._setting import Setting
from ._state import Change, change_of
from ._store import CachesResults
from ._trials import RetryState


class Recaller:
    """The part of a run that recalls results."""

    __slots__ = ()
    setting: Setting
    head: tuple[int, Mapping[str, object]]
    retries: RetryState | None

    @abstractmethod
    def retry_state(self) -> RetryState:
        """Return what it keeps between attempts."""

    @abstractmethod
    async def settle(self) -> None:
        """Drop native cancellation that user code has left on this task."""

    @property
    def is_cached(self) -> bool:
        """Whether its current step is not executed, for what it comes to was remembered."""
        return self.retries is not None and self.retries.is_cached

    async def remember_result(
        self, action: FunctionAction[..., Any], change: Change, seconds: float
    ) -> Change:
        """Return what ``action``, its current step, has come to, once that is remembered.

        Cancelled meanwhile, it was or it wasn't: the step isn't completed, and a resume may find
        that it needn't be executed.
        """
        setting, what = self.setting, f"room for a result of {action.name!r}"
        if setting.schema is not None:  # what it refuses is no result
            setting.schema.checked(change, self.head[1], f"action {action.name!r}")
        if setting.secrets.names:
            setting.secrets.refuse(change.operations, f"what action {action.name!r} has come to")
        await self.settle()
        key = self.retry_state().result_key
        remembering = self._results.remember(key, change.operations, seconds)
        await setting.execution.ask(remembering, what, (NotData, UpdateTooLarge))
        return change

    async def recall_result(self, action: FunctionAction[..., Any]) -> Change | None:
        """Look whether what ``action``, its current step, comes to is remembered."""
        trials = self.retry_state()
        recalling = self._results.recall(trials.result_key)
        what = f"the result of {action.name!r}"
        operations = await self.setting.execution.ask(recalling, what)
        if operations is None:
            return None
        trials.is_cached = True
        return change_of(self.head[1], operations)

    @property
    def _results(self) -> CachesResults:
        store = self.setting.store
        return store if isinstance(store, CachesResults) else self.setting.services.results
