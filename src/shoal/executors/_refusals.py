"""What executors with workers elsewhere refuse before a run starts, because it can't be sent."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, final

from shoal._errors.exceptions import DefinitionError, NotSendable

from ._port import Job
from ._sending import dump, named, why, why_not, why_not_function


@final
class Refusals:
    """What one executor refuses, and the initializer of its workers.

    Runtimes of several threads may share it.
    """

    def __init__(
        self, kind: str, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> None:
        """Look at nothing yet: what is sent by value may be completed after its declaration.

        Args:
            kind: The class of the executor, as users write it.
            initializer: See ``Processes``.
            initargs: Its arguments.
        """
        self._kind = kind
        self._initializer = initializer
        self._initargs = initargs
        # What was found out. Only what can be sent: the rest may be mended meanwhile.
        self._sendable: weakref.WeakSet[Job] = weakref.WeakSet()

    def why(self, job: Job, inputs: Mapping[str, object]) -> str:
        """Return why a function or its inputs can't be sent; see ``Executor.refuse``."""
        try:
            self.initializer()
        except NotSendable as error:  # the text is the reason
            return str(error)
        if job not in self._sendable:
            reason = why_not_function(job.function)
            if reason:
                return reason
            self._sendable.add(job)
        for name, value in inputs.items():
            reason = why_not(value)
            if reason:
                return (
                    f"its input {name!r} can't be sent: {reason}; have the worker make it, with "
                    f"{self._kind}(initializer=...), or leave the action in the loop: "
                    f"@action(executor='loop')"
                )
        return ""

    def initializer(self) -> bytes | None:
        """Return the pickled initializer, with its arguments; None if there is none.

        Raises:
            NotSendable: It can't be pickled.
        """
        if self._initializer is None:
            return None
        try:
            return dump((self._initializer, self._initargs))
        except Exception as error:
            what = why((self._initializer, self._initargs), error)
            msg = (
                f"the initializer {named(self._initializer)} can't be sent with its initargs: "
                f"{what}"
            )
            raise NotSendable(msg) from error


def check_workers(
    executor: str,
    what: str,
    workers: object,
    *,
    concurrency: object,
    takes: object,
    initializer: object,
) -> None:
    """Check what all executors with workers elsewhere take; ``what`` is what they call the workers.

    Raises:
        DefinitionError: An argument has the wrong type or is out of range.
    """
    for name, count in ((what, workers), ("concurrency", concurrency)):
        if (type(count) is not int or count < 1) and not (count is None and name == what):
            msg = f"{executor}({name}=...) takes a whole number, at least 1, not {count!r}"
            raise DefinitionError(msg)
    if takes not in ("plain", "all"):
        msg = f"{executor}(takes=...) takes 'plain' or 'all', not {takes!r}"
        raise DefinitionError(msg)
    if initializer is not None and not callable(initializer):
        msg = f"{executor}(initializer=...) takes a function, not {initializer!r}"
        raise DefinitionError(msg)
