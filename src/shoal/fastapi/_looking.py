"""Runs of an application, wherever they go on: here, in another process, or nowhere any more.

What goes on here is asked itself. Of all else the store says what it has; so whatever worker of a
service a request comes to, it gives the same answer.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, final

from fastapi import HTTPException

from shoal._errors.exceptions import (
    BadUse,
    CommitInDoubt,
    DefinitionError,
    Draining,
    LeaseLost,
    MissingField,
    MissingSecret,
    NotData,
    NotDecodable,
    RunClaimed,
    RunConflict,
    SecretLeaked,
    StateError,
    StoreFailed,
    UnknownQuestion,
    UnknownRun,
    UpdateTooLarge,
)
from shoal._events.events import Question, in_short
from shoal._events.identity import RunPath
from shoal._runtime.application import Application
from shoal._runtime.handle import RunHandle
from shoal._runtime.runtime import Runtime
from shoal._state.state import State, make_state
from shoal.stores._history import Playback, play
from shoal.stores._protocol import Beginning, Browses, NullStore, ReadsInParts, RunSummary, Store

from ._models import as_plain
from ._problems import STATE, Place, printable, refusal_of

RETRY_AFTER = "1"
"""Seconds after which a client may find another process, where this one stops."""

_REFUSED = (
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

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens in it, as far as it is known."""
        return self.status != "running"

    def info(self) -> dict[str, object]:
        """Return what there is to say without its state."""
        return {
            "id": self.run_id,
            "application": self.application,
            "status": self.status,
            "reason": self.reason,
        }

    def view(self) -> dict[str, object]:
        """Return what there is to say."""
        view = {**self.info(), "number": self.number, "state": as_plain(self.state)}
        if self.status not in ("failed", "cancelled"):
            del view["reason"]
        if self.status == "halted":
            view["questions"] = [
                {
                    "run_id": one.run_id,
                    "name": one.name,
                    "step": one.step,
                    "key": one.key,
                    "question": one.question,
                }
                for one in self.questions
            ]
        return view


@final
class Runs:
    """The runs of one application in a service."""

    def __init__(self, app: Application[Any]) -> None:
        """Look for runs of ``app``."""
        self.app: Application[Any] = app

    def store(self, runtime: Runtime) -> Store:
        """Return where they are kept."""
        return runtime.store if self.app.store is None else self.app.store

    def here(self, runtime: Runtime, run_id: str) -> RunHandle[Any] | None:
        """Return a run that goes on in this process; None: it doesn't."""
        handle = runtime.find(run_id)
        return handle if handle is not None and handle.application == self.app.name else None

    async def find(self, runtime: Runtime, run_id: str) -> Seen:
        """Look at a run.

        Raises:
            HTTPException: There is none of that id.
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
            # Behind that: what is said to have ended shows all that it has come to.
            played = await replayed(store, path, beginning)
            questions: Sequence[Question] = ()
            if status == "halted":
                questions = await self.app.questions(run_id, runtime=runtime)
        state = make_state(played.data)
        return Seen(run_id, self.app.name, status, reason, played.number, state, questions)


def status_of(run: RunSummary) -> str:
    """Say how a run stands: one that was taken up again goes on, though its store has its end."""
    return "running" if run.holder and run.status != "succeeded" else run.status


async def replayed(store: Store, path: RunPath, beginning: Beginning) -> Playback:
    """Play the history of a run back: in parts, where its store can read it so."""
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
    """Ask the store; whatever it raises is its failure."""
    try:
        return await pending
    except (NotDecodable, StoreFailed):
        raise
    except Exception as error:
        msg = f"the store could not be asked: {in_short(error)}"
        raise StoreFailed(msg) from error


def seen(handle: RunHandle[Any]) -> Seen:
    """Look at a run that goes on here, or has just ended."""
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
    )


def unknown(run_id: str, *, is_kept: bool = True) -> HTTPException:
    """Say that there is no such run."""
    hint = "" if is_kept else "; without a store a run is known while it goes on, in its process"
    return HTTPException(404, f"there is no run {run_id!r}{hint}")


@contextmanager
def as_responses(where: Place = STATE, answered: Sequence[object] = ()) -> Generator[None]:
    """Within, have what is raised tell the client what it can do about it.

    Args:
        where: The part of the request that refusals are about.
        answered: For which questions there are answers, in the order in which they were sent.
    """
    try:
        yield
    except Draining as error:
        raise HTTPException(503, printable(str(error)), {"Retry-After": RETRY_AFTER}) from error
    except (StoreFailed, CommitInDoubt, LeaseLost) as error:
        raise HTTPException(503, printable(str(error)), {"Retry-After": RETRY_AFTER}) from error
    except NotDecodable as error:  # to try again changes nothing
        logger.warning("what the store has of a run can't be read: %s", error)
        raise HTTPException(500, "what the store has of the run can't be read here") from error
    except UnknownRun as error:
        raise HTTPException(404, printable(str(error))) from error
    except RunConflict as error:
        what = error.what or "the run was begun by a program that differs from this one"
        msg = f"{what}; send its id without `state` to have it go on, or another `id` for a new run"
        raise HTTPException(409, printable(msg)) from error
    except RunClaimed as error:
        raise HTTPException(409, printable(str(error))) from error
    except BadUse as error:
        logger.warning("a request could not be met: %s", error)
        raise HTTPException(409, "the service can't do that with the run now") from error
    except _REFUSED as error:
        raise refusal_of(error, where, answered) from error
