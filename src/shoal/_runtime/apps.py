"""Applications, as a runtime needs them.

``Application`` is above ``Runtime``, because it opens one, so a runtime knows it by protocols.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from shoal._graph.act import Act
from shoal._limits.flows import Priority
from shoal._state.state import S
from shoal.stores._protocol import Store

from .answers import Answers
from .handle import RunHandle

R_co = TypeVar("R_co", covariant=True)


class Runnable(Protocol[R_co]):
    """An application that a runtime runs."""

    async def run(
        self,
        state: Any = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        priority: Priority | None = None,
        owner: str | None = None,
        runtime: Any = None,
    ) -> R_co:
        """Run it in ``runtime``."""
        ...


class Startable(Protocol[S]):
    """An application that a runtime starts."""

    async def start(
        self,
        state: Any = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        priority: Priority | None = None,
        owner: str | None = None,
        runtime: Any,
    ) -> RunHandle[S]:
        """Execute it in ``runtime``, and return once the run has begun."""
        ...


class Recoverable(Protocol):
    """An application whose runs a runtime recovers."""

    @property
    def name(self) -> str:
        """The application's name."""
        ...

    @property
    def version(self) -> str:
        """The version of its definition."""
        ...

    @property
    def store(self) -> Store | None:
        """Where its runs are saved; None: in the runtime's store."""
        ...

    def recover(
        self,
        run_id: str,
        state: Mapping[str, object] | None = None,
        *,
        priority: Priority | None = None,
        runtime: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Resume a run that has no end; return None if another execution has it.

        ``state`` has the run's secret fields.
        """
        ...

    def take_over(
        self,
        run_id: str,
        state: Mapping[str, object] | None = None,
        *,
        priority: Priority | None = None,
        runtime: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Do the same, but return a handle once the run goes on."""
        ...
