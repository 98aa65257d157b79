"""The standard library's logging: which run, action and child a record comes from."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import ClassVar, final

from shoal._events.events import StepStarted
from shoal._events.hooks import Hook

__all__ = ["LogContext"]

_current: ContextVar[StepStarted | None] = ContextVar("shoal_step", default=None)


@final
class LogContext(Hook):
    """Gives log records the run that they come from. A hook and a filter in one.

    As a hook it knows the step that is executed, also in tasks and worker threads that an action
    starts. As a filter it gives each record the attributes ``run_id``, ``root_id``, ``action`` and
    ``key``, the key of a child in its fan-out. Outside of runs, and for a root run's ``key``, they
    are empty. So a format may always name them. A record that has such an attribute already, by
    ``extra=``, keeps it. It lets every record pass.

    Give it to the application or the runtime, and to the handlers of logging, whose filters see the
    records of all loggers.

    Examples:
        >>> import logging, sys
        >>> context = LogContext()
        >>> handler = logging.StreamHandler(sys.stdout)
        >>> handler.addFilter(context)
        >>> handler.setFormatter(logging.Formatter("%(action)s[%(key)s] %(message)s"))
        >>> logger = logging.Logger("example")
        >>> logger.addHandler(handler)
        >>> @action(reads=["word"], writes=["length"])
        ... async def measure(word: str) -> int:
        ...     logger.info("measured")
        ...     return len(word)
        >>> lengths = fan_out(measure, over="words", item="word", key=str, into="lengths")
        >>> app = Application(lengths, hooks=[context])
        >>> app.run_sync({"words": ["cod", "shark"]}).state["lengths"]
        measure[cod] measured
        measure[shark] measured
        {'cod': 3, 'shark': 5}
    """

    observer: ClassVar[bool] = True

    def around_step(self, event: StepStarted) -> AbstractContextManager[object]:
        """Return a context manager in which records belong to the step."""
        return _Within(event)

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes to a record, and let it pass."""
        step = _current.get()
        known = vars(record)
        if step is None:
            for name in ("run_id", "root_id", "action", "key"):
                known.setdefault(name, "")
            return True
        path = step.path
        known.setdefault("run_id", path.id)
        known.setdefault("root_id", path.root.id)
        known.setdefault("action", step.step)
        known.setdefault("key", path.key)
        return True


@final
class _Within:
    __slots__ = ("_event", "_token")

    def __init__(self, event: StepStarted) -> None:
        self._event = event
        self._token: Token[StepStarted | None] | None = None

    def __enter__(self) -> None:
        self._token = _current.set(self._event)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._token is not None, "it is left after it was entered"
        _current.reset(self._token)
