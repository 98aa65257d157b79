"""What a pool knows of its workers, and of the functions that it sends to them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, cast, final

from shoal._errors.exceptions import NotSendable
from shoal._state.secrets import reveal
from shoal._state.state import State

from ._links import Link
from ._messages import JOB, Message
from ._pace import Pace
from ._port import Job
from ._remote_call import RemoteCall
from ._sending import dump, why_not_function, why_not_kwargs


@final
class RemoteWorker:
    """A worker, and the calls that were sent to it."""

    __slots__ = (
        "began",
        "calls",
        "is_doomed",
        "is_kept",
        "is_killed",
        "is_ready",
        "is_refused",
        "jobs",
        "link",
        "load",
        "moved_at",
        "others",
        "out",
        "plain",
        "reprieve",
        "started_at",
        "stuck",
        "urgent",
    )

    link: Link
    """Set as soon as it is started, and never again."""

    def __init__(self, started_at: float) -> None:
        self.started_at: float = started_at
        self.calls: dict[int, RemoteCall] = {}
        """The calls that have not ended, by number, in the order in which they were sent."""
        self.plain: int = 0
        """Calls of plain functions among them."""
        self.others: int = 0
        self.urgent: int = 0
        """Calls with a timeout or a context among them: what they answer is waited for."""
        self.load: float = 0.0
        """Seconds that the plain ones are expected to take."""
        self.began: set[int] = set()
        """Those that the worker has reported to be at work."""
        self.jobs: set[int] = set()
        """Functions that were sent."""
        self.out: list[Message] = []
        """Messages that are sent at the end of this turn of the loop."""
        self.moved_at: float = 0.0
        """When it last ended a call, or got one after it had none."""
        self.is_kept: bool = False
        """Whether it is kept for one call alone: it gets no other one meanwhile."""
        self.stuck: set[int] = set()
        """Calls of plain functions that were left behind: it gets no other ones meanwhile."""
        # None of these four is ever reset.
        self.is_ready: bool = False
        self.is_refused: bool = False
        """Whether its initializer has raised."""
        self.is_doomed: bool = False
        """Whether it gets no more calls, and is killed when those that count have ended."""
        self.is_killed: bool = False
        self.reprieve: Callable[[], object] | None = None
        """Calls the alarm off that kills a doomed worker at last."""

    @property
    def is_open(self) -> bool:
        """Whether it may get calls."""
        return self.is_ready and not (self.is_doomed or self.is_kept or self.stuck)

    @property
    def is_at_rest(self) -> bool:
        """Whether all of its calls wait for children of their own, so that nothing is at work."""
        return all(call.is_resting for call in self.calls.values())

    def count(self, record: Record, by: int) -> None:
        """Count a call that was sent, or with ``by=-1`` one that has ended or was given back."""
        if record.is_other:
            self.others += by
            return
        self.plain += by
        # Estimates change meanwhile, so what is subtracted may not be what was added.
        self.load = max(0.0, self.load + by * (record.pace.seconds or 0.0)) if self.plain else 0.0

    def waiting(self) -> list[int]:
        """Return the calls that have perhaps not begun, so that they may be given back."""
        plain = [number for number, one in self.calls.items() if not one.record.is_other]
        return plain[1:]

    def start_time(self) -> None:
        """Start the time of the plain call that is at work: the first one."""
        if self.plain:
            for call in self.calls.values():
                if not call.record.is_other:
                    if call.time is not None and not call.is_given_up:
                        call.time.start()
                    return

    @property
    def has_innocent(self) -> bool:
        """Whether a call that was not cancelled may be at work."""
        return any(not call.is_given_up for call in self.calls.values())

    @property
    def has_innocent_others(self) -> bool:
        """Whether one of those that are in its loop, and not in the lane, was not cancelled."""
        return any(one.record.is_other and not one.is_given_up for one in self.calls.values())

    def at_work(self) -> Collection[int]:
        """Return the calls that had begun and not ended when it died, as far as is known."""
        begun = self.link.begun()
        if begun is None:
            # What the worker has reported says only which calls had begun for certain. With one
            # that is missing there, an innocent call would seem to have been alone in it; see
            # test_of_calls_that_may_have_begun_none_is_taken_to_be_alone.
            return set(self.calls)
        return {*begun, *self.began} & self.calls.keys()

    def call_off(self) -> None:
        """Call off the alarm that kills it."""
        if self.reprieve is not None:
            self.reprieve()
            self.reprieve = None


@final
class Record:
    """A function, as a pool sends it."""

    __slots__ = ("_data", "is_other", "kind", "name", "number", "pace")

    def __init__(self, job: Job, number: int) -> None:
        """Pickle the function.

        Raises:
            NotSendable: It can't be pickled. The message says why and what to do.
        """
        self.number: int = number
        self.name: str = job.name
        self.kind: Literal["plain", "async", "stream"] = job.kind
        self.is_other: bool = job.kind != "plain"
        """Whether it is called in the loop of the worker, and not in the lane."""
        self.pace: Pace = Pace()
        try:
            self._data = dump((job.function, job.access, job.takes_context))
        except Exception as error:
            reason = why_not_function(job.function) or str(error)
            msg = f"action {job.name!r} can't be called in a worker: {reason}"
            raise NotSendable(msg) from error

    def message(self) -> Message:
        """Return the message that sends it, with where modules are found now.

        The program may have changed ``sys.path`` since the worker was started.
        """
        return JOB, self.number, self.kind, self.name, self._data, list(sys.path)


def dumped_arguments(job: Job, kwargs: Mapping[str, Any]) -> bytes:
    """Pickle the arguments of a call; of a state its fields, secret ones included.

    Raises:
        NotSendable: One of them can't be pickled. The message names it.
    """
    sent: Any = kwargs
    named: Mapping[str, Any] = kwargs
    if job.access is not None:
        rest = dict(kwargs)
        data = cast("State", rest.pop("state"))._data
        fields = {name: reveal(value) for name, value in data.items()}
        sent = rest, fields, [name for name, value in data.items() if value is not fields[name]]
        named = {**rest, **fields}
    try:
        return dump(sent)
    except Exception as error:
        found = why_not_kwargs(named, error)
        msg = (
            f"action {job.name!r} can't be called in a worker with {found}; make it there, with "
            f"initializer=, or leave this action in the loop: @action(executor='loop')"
        )
        raise NotSendable(msg) from error
