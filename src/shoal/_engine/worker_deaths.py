"""Go on after the death of a worker that an action was called in.

The death is to the run what a crash of the whole process is, but for two things: the process is
there to count it, and which calls were at work in the worker is known.

Invariants:
- A death is saved before the action is called again, so that it also counts if the process dies.
- A run is poisoned only by the death of a worker in which it alone was at work. Before the death
  that would be one too many, it is called in a worker of its own.
- While it waits for children there, that worker may have other calls, since a child may have no
  other worker. If it dies then, the run is called again, and poisoned after as many such deaths as
  the limit. So it comes to an end: a child that isn't saved is counted anew with each call of its
  parent; see test_a_child_that_kills_the_only_worker_again_and_again.
"""

from __future__ import annotations

import logging

from anyio.lowlevel import checkpoint_if_cancelled

from shoal._errors.exceptions import Poisoned, WorkerDied, brief

from .commit import SAVE, commit
from .run import Run

logger = logging.getLogger("shoal")


async def outlive(run: Run, error: WorkerDied) -> None:
    """Count the death of a worker against ``run``, whose action may be called again then.

    Raises:
        Poisoned: It was one too many.
        ShoalError: As ``commit``; or the execution ends anyway, and this says why.
    """
    config = run.config
    execution, most = config.execution, config.services.max_crashes
    failure = execution.failure
    if failure is not None:
        # The death is only a consequence, or came in between: an action that waits for children in
        # the same worker never gets theirs.
        raise failure from failure.__cause__
    await checkpoint_if_cancelled()
    retries = run.retry_state()
    deaths = retries.crashes - retries.is_suspect + 1
    retries.own_deaths += retries.needs_own_worker
    if deaths >= most and (not error.others or retries.own_deaths >= most):
        retries.crashes, retries.is_suspect = deaths, False
        raise _poisoned(run, error, deaths) from error
    # Others may have killed it: then it can't be one too many (see
    # test_of_several_in_one_worker_only_the_one_that_kills_it_is_condemned).
    deaths = min(deaths, most - 1)
    retries.crashes = deaths + retries.is_suspect
    retries.needs_own_worker = deaths + 1 >= most
    execution.has_lost_workers = True
    logger.warning(
        "%s while it called action %r of run %s, which is called again: death %d of at most %d",
        error,
        run.step,
        run.path.id,
        max(deaths, 1),
        most,
    )
    if config.keeps:
        await commit(run, SAVE)
        await checkpoint_if_cancelled()


def _poisoned(run: Run, error: WorkerDied, deaths: int) -> Poisoned:
    path = run.path
    child = "" if path.parent is None else f", key {brief(path.key)} of {path.step!r},"
    times = "the last of them alone" if deaths > 1 else "alone"
    msg = (
        f"action {run.step!r} of run {path.id}{child} was at work in {deaths} "
        f"worker{'' if deaths == 1 else 's'} in a row that died, {times}, so it is not called "
        f"again; find out why they died (the last one: {error}). Once that is mended: a run that "
        f"has failed with this error tries it again when it is resumed, and a run that has "
        f"collected the error with retry_failed({path.root.id!r}). Runtime(max_crashes=...) gives "
        f"more chances"
    )
    return Poisoned(msg, deaths)
