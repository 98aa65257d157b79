"""Find runs of an application: in this process, in another one, or ended.

Runs of this process are read from their handles, all others from the store. So all workers of a
service give the same answers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, final

from fastapi import HTTPException

from shoal._errors.exceptions import (
    BadAnswer,
    BadUse,
    CommitInDoubt,
    DefinitionError,
    Draining,
    LeaseLost,
    MissingField,
    MissingSecret,
    NotData,
    NotDecodable,
    NotSteered,
    Overloaded,
    RunClaimed,
    RunConflict,
    SecretLeaked,
    StateError,
    StoreFailed,
    UnknownQuestion,
    UnknownRun,
    UpdateTooLarge,
)
from shoal._errors.inspection import leaves
from shoal._events.events import Question, in_short
from shoal._events.identity import RunPath
from shoal._runtime.application import Application
from shoal._runtime.handle import RunHandle
from shoal._runtime.runtime import Runtime
from shoal._state.state import State, make_state
from shoal.stores._history import ReplayedHistory, Steered, play
from shoal.stores._protocol import Beginning, Browses, NullStore, ReadsInParts, RunSummary, Store

from ._models import as_plain
from ._problems import STATE, Place, printable, refusal_of

RETRY_AFTER = "1"
"""Seconds after which a client may retry, and reach another process, if this one stops."""

_REFUSED = (
    BadAnswer,
    DefinitionError,
    MissingField,
    MissingSecret,
    NotData,
    SecretLeaked,
    StateError,
    UnknownQuestion,
    UpdateTooLarge,
)
logger = logging.getLogger("shoal.fastapi")


class Seen(NamedTuple):
    """A run at one moment."""

    run_id: str
    application: str
    status: str
    reason: str
    number: int
    state: State[Any]
    questions: Sequence[Question] = ()
    paused: Steered | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended, as far as this process knows."""
        return self.status != "running"

    def info(self) -> dict[str, object]:
        """Return the content of a response without the state."""
        paused = self.paused if self.status in ("running", "halted") else None
        info: dict[str, object] = {
            "id": self.run_id,
            "application": self.application,
            "status": self.status,
            "reason": self.reason,
        }
        if paused is not None:
            info["paused"] = {"since": paused.at, "by": paused.by, "reason": paused.reason}
        return info

    def view(self) -> dict[str, object]:
        """Return the content of a response with the state."""
        view = {**self.info(), "number": self.number, "state": as_plain(self.state)}
        if self.status not in ("failed", "cancelled", "halted"):
            del view["reason"]
        if self.status == "halted":
            view["questions"] = [
                {
                    "run_id": one.run_id,
                    "name": one.name,
                    "step": one.step,
                    "key": one.key,
                    "question": one.question,
                    "answer_schema": one.answer_schema,
                }
                for one in self.questions
            ]
        return view


@final
class Runs:
    """The runs of one application in a service."""

    def __init__(self, app: Application[Any]) -> None:
        """Find runs of ``app``, and only those."""
        self.app: Application[Any] = app

    def store(self, runtime: Runtime) -> Store:
        """Return the store that keeps the runs."""
        return runtime.store if self.app.store is None else self.app.store

    def here(self, runtime: Runtime, run_id: str) -> RunHandle[Any] | None:
        """Return the handle of a run that this process executes; None if it doesn't."""
        handle = runtime.find(run_id)
        return handle if handle is not None and handle.application == self.app.name else None

    async def find(self, runtime: Runtime, run_id: str) -> Seen:
        """Return a run as it is now.

        Raises:
            HTTPException: There is no run with that id.
        """
        handle = self.here(runtime, run_id)
        if handle is not None:
            return seen(handle)
        store = self.store(runtime)
        with as_responses():
            record = await ask(store.load(run_id))
            if record is None or record.beginning.application != self.app.name:
                raise unknown(run_id, is_kept=not isinstance(store, NullStore))
            beginning = record.beginning
            path = RunPath(run_id=run_id, act=self.app.name)
            status: str = record.status or "running"
            reason = record.reason
            if isinstance(store, Browses):
                summary: RunSummary | None = await ask(store.summary(run_id))
                if summary is not None:
                    status, reason = status_of(summary), summary.reason or summary.error
            # After reading the status: a run that counts as ended then has its final state.
            played = await replayed(store, path, beginning)
            questions: Sequence[Question] = ()
            if status == "halted":
                questions = await self.app.questions(run_id, runtime=runtime)
        state = make_state(played.data)
        number, paused = played.number, played.paused
        return Seen(run_id, self.app.name, status, reason, number, state, questions, paused)


def status_of(run: RunSummary) -> str:
    """Return the status of a run. A run that is being resumed is running, despite its saved end."""
    return "running" if run.holder and run.status != "succeeded" else run.status


async def replayed(store: Store, path: RunPath, beginning: Beginning) -> ReplayedHistory:
    """Replay the history of a run: in parts, if its store can read it so."""
    played = play(beginning.first, (), after=beginning.after, visits=beginning.visits)
    number: int | None = 0
    while number is not None:
        if isinstance(store, ReadsInParts):
            entries, number = await ask(store.read_part(path, number))
        else:
            entries, number = await ask(store.read(path)), None
        for entry in entries:
            played.add(entry)
    return played


async def ask(pending: Any) -> Any:
    """Await a call of the store; turn its unknown errors into ``StoreFailed``."""
    try:
        return await pending
    except (NotDecodable, StoreFailed):
        raise
    except Exception as error:
        msg = f"the store could not be read: {in_short(error)}"
        raise StoreFailed(msg) from error


def seen(handle: RunHandle[Any]) -> Seen:
    """Return a run of this process as it is now; it may just have ended."""
    status, error = handle.status, handle.error
    reason = handle.reason if error is None else in_short(error)
    return Seen(
        handle.run_id,
        handle.application,
        status or "running",
        reason if status is not None else "",
        handle.number,
        handle.state,
        handle.questions,
        handle.paused,
    )


def refuse_overloaded(error: BaseException | None) -> None:
    """Refuse a request whose run has failed only because limits were overloaded.

    Raises:
        HTTPException: 503, with the seconds after which the client may retry.
    """
    if error is None:
        return
    failures = [*leaves(error)]
    overloads = [one for one in failures if isinstance(one, Overloaded)]
    if overloads and len(overloads) == len(failures):
        # A race asks several, and needs one of them.
        raise _overloaded(str(overloads[0]), min(one.retry_after for one in overloads))


def _overloaded(text: str, seconds: float) -> HTTPException:
    # Whole seconds, as the header has them, and rounded up: sooner, it would be refused again.
    return HTTPException(503, printable(text), {"Retry-After": str(max(1, math.ceil(seconds)))})


def unknown(run_id: str, *, is_kept: bool = True) -> HTTPException:
    """Return the response for a run that doesn't exist."""
    hint = "" if is_kept else "; without a store a run is known only while it runs, in its process"
    return HTTPException(404, f"there is no run {run_id!r}{hint}")


@contextmanager
def as_responses(where: Place = STATE, answered: Sequence[object] = ()) -> Generator[None]:
    """Within the block, turn errors into responses that tell the client what to do.

    Args:
        where: The part of the request that refusals are about.
        answered: The questions that have answers, in the order in which these were sent.
    """
    try:
        yield
    except Overloaded as error:
        raise _overloaded(str(error), error.retry_after) from error
    except Draining as error:
        raise HTTPException(503, printable(str(error)), {"Retry-After": RETRY_AFTER}) from error
    except (StoreFailed, CommitInDoubt, LeaseLost) as error:
        raise HTTPException(503, printable(str(error)), {"Retry-After": RETRY_AFTER}) from error
    except NotDecodable as error:  # not a 503, because retrying changes nothing
        logger.warning("a saved run can't be read: %s", error)
        raise HTTPException(500, "the saved run can't be read by this service") from error
    except UnknownRun as error:
        raise HTTPException(404, printable(str(error))) from error
    except RunConflict as error:
        advice = "send its id without `state` to resume it, or another `id` for a new run"
        what = error.what
        if not what:  # the message names parts of the program, which are not for clients
            logger.warning("a run can't be resumed: %s", error)
            what = "the run was begun by a program that differs from this one, and can't go on here"
            advice = "send another `id` for a new run"
        msg = f"{what}; {advice}"
        raise HTTPException(409, printable(msg)) from error
    except RunClaimed as error:
        raise HTTPException(409, printable(str(error))) from error
    except NotSteered as error:
        raise HTTPException(409, printable(str(error))) from error
    except BadUse as error:
        logger.warning("a request could not be met: %s", error)
        raise HTTPException(409, "the service can't do that with the run at the moment") from error
    except _REFUSED as error:
        raise refusal_of(error, where, answered) from error
