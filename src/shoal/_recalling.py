"""What a run does about actions with ``cache=``. Imports settings, trials and digests.

Invariants:
- Only what has succeeded is remembered, would be allowed to be written, and holds no secret.
- What is remembered is looked for before anything is waited for, and once more by who had to wait:
  who had the seat before has remembered it by then.
- A result is found by what its action reads, the action's name, its version and the names of what
  it writes; never by inputs, nor by fields that it doesn't read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Mapping
from typing import Any

from ._action import Act, FunctionAction
from ._digest import combined, named, written
from ._errors import NotData, UpdateTooLarge
from ._setting import Setting
from ._state import Change, change_of
from ._store import CachesResults
from ._trials import Trials


def result_key(act: Act, data: Mapping[str, object]) -> str:
    """Hash what ``act`` is and what it is about to read.

    Raises:
        NotData: A field that it reads holds what is no data.
    """
    parts = [written("result", act.name, act.version, *sorted(act.writes))]
    for field in sorted(act.reads):
        if field in data:
            try:
                parts.append(named(field, data[field]))
            except NotData as error:
                msg = (
                    f"action {act.name!r} has cache=, so what it reads is hashed; "
                    f"field {field!r}: {error}"
                )
                raise NotData(msg) from error
    return combined(parts)


class Recaller:
    """The part of a run that recalls results."""

    __slots__ = ()
    setting: Setting
    _head: tuple[int, Mapping[str, object]]
    _trials: Trials | None

    @abstractmethod
    def _remember(self) -> Trials:
        """Return its trials, from now on if it had none."""

    @abstractmethod
    def _execute(self, action: FunctionAction[..., object]) -> Awaitable[Change]:
        """Execute a function action on the state as it is."""

    @abstractmethod
    async def settle(self) -> None:
        """Drop native cancellation that user code has left on this task."""

    @property
    def is_cached(self) -> bool:
        """Whether its current step is not executed, for what it comes to was remembered."""
        return self._trials is not None and self._trials.is_cached

    async def recall_or_execute(self, action: FunctionAction[..., object]) -> Change:
        """Take what is remembered of ``action``; else execute it, which has it remembered."""
        trials = self._remember()
        trials.result_key, trials.is_cached = result_key(action, self._head[1]), False
        change = await self.recall_result(action)
        return await self._execute(action) if change is None else change

    async def remember_result(
        self, action: FunctionAction[..., Any], change: Change, seconds: float
    ) -> Change:
        """Return what ``action``, its current step, has come to, once that is remembered.

        Cancelled meanwhile, it was or it wasn't: the step isn't completed, and a resume may find
        that it needn't be executed.
        """
        setting, what = self.setting, f"room for a result of {action.name!r}"
        if setting.schema is not None:  # what it refuses is no result
            setting.schema.checked(change, self._head[1], f"action {action.name!r}")
        if setting.secrets.names:
            setting.secrets.refuse(change.operations, f"what action {action.name!r} has come to")
        await self.settle()
        key = self._remember().result_key
        remembering = self._results.remember(key, change.operations, seconds)
        await setting.execution.ask(remembering, what, (NotData, UpdateTooLarge))
        return change

    async def recall_result(self, action: FunctionAction[..., Any]) -> Change | None:
        """Look whether what ``action``, its current step, comes to is remembered."""
        trials = self._remember()
        recalling = self._results.recall(trials.result_key)
        what = f"the result of {action.name!r}"
        operations = await self.setting.execution.ask(recalling, what)
        if operations is None:
            return None
        trials.is_cached = True
        return change_of(self._head[1], operations)

    @property
    def _results(self) -> CachesResults:
        store = self.setting.store
        return store if isinstance(store, CachesResults) else self.setting.services.results
