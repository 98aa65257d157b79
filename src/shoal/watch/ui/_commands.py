"""Do what a form of a page asks for: cancel, run again, answer, change limits.

If another process executes the run, the request becomes a command in the store, which that process
takes within a moment. If no process does, the run is executed here, which needs its application.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, final

from anyio import Event, move_on_after, sleep
from anyio.abc import TaskGroup

from shoal._errors.exceptions import ShoalError
from shoal._events.identity import RunPath, new_run_id
from shoal._runtime.application import Application
from shoal._runtime.runtime import Runtime
from shoal._runtime.steering import names_of
from shoal._state.json_schema import misfit
from shoal.stores._history import Steered
from shoal.stores._watching import Command, CommandKind, KeepsReports, Steers
from shoal.watch._overview import Overview
from shoal.watch._queries import Queries
from shoal.watch._questions import question_of

from ._forms import BadAnswer, answer_from
from ._questions import schema_asked
from ._secrets import Secrets, why_not_here

log = logging.getLogger("shoal.watch.ui")

BY = "the page"
"""Who steers runs here, for the record: the page doesn't know people."""
DONE_WITHIN = 2.0
"""Seconds to wait until another process has carried out what was asked: it looks for commands four
times a second. So the page that follows shows what became of it."""
PATIENCE = 1.0
"""Seconds to wait for an error of a run that is executed again: most of them come at once."""


class CannotDo(Exception):
    """A request can't be carried out. The message says why, and what to do."""


@final
class Commands:
    """What pages can ask for."""

    def __init__(
        self,
        queries: Queries,
        store: object,
        applications: Mapping[str, Application[Any]],
        runtime: Callable[[], Runtime | None],
        tasks: Callable[[], TaskGroup | None],
        *,
        secrets: Secrets,
    ) -> None:
        """Make the commands of an application.

        Args:
            queries: Find runs.
            store: Takes commands for other processes.
            applications: Those that can be executed here, by name.
            runtime: Returns where to execute; None if there is no runtime.
            tasks: Returns a group for what outlives a request; None: the runtime hosts that.
            secrets: Tells which runs can't be executed without their secrets.
        """
        self._secrets = secrets
        self._queries = queries
        self._store = store
        self._applications = applications
        self._runtime = runtime
        self._tasks = tasks

    async def cancel(self, path: RunPath, reason: str) -> None:
        """Cancel a run, or a child with its descendants.

        Raises:
            CannotDo: Nothing executes it.
        """
        # Not of the child: the store may not know it yet.
        overview = await self._queries.overview(path.root)
        runtime = self._runtime()
        handle = None if runtime is None else runtime.find(path.root.id)
        if handle is not None and handle.status is None:
            if path.parent is None:
                handle.cancel(reason)
            else:
                handle.cancel_child(path, reason)
            return
        self._require_held(overview)
        if path.parent is None:
            await self._leave(path, "cancel", {"reason": reason})
        else:
            await self._leave(path, "cancel child", {"path": names_of(path), "reason": reason})

    async def pause(self, path: RunPath, reason: str = "") -> None:
        """Pause a root run, also one that no process executes.

        Raises:
            CannotDo: It has ended, or can't be paused from here.
        """
        await self._steer(path.root, "pause", reason)

    async def unpause(self, path: RunPath, reason: str = "") -> None:
        """Let a paused root run go on.

        Raises:
            CannotDo: It has ended, or can't be resumed from here.
        """
        await self._steer(path.root, "resume", reason)

    async def _steer(self, path: RunPath, kind: CommandKind, reason: str) -> None:
        overview = await self._queries.overview(path)
        if overview.status not in ("running", "halted"):
            raise CannotDo(f"The run has {overview.status}.")
        if (overview.paused is not None) is (kind == "pause"):
            return
        runtime = self._runtime()
        handle = None if runtime is None else runtime.find(path.id)
        if handle is not None and handle.status is None:
            await (handle.pause if kind == "pause" else handle.resume)(reason, by=BY)
        elif overview.summary.holder:
            await self._leave(path, kind, {"reason": reason} if reason else {})
        elif isinstance(self._store, Steers):
            steered = Steered(kind, BY, time.time(), {"reason": reason} if reason else {})
            if not await self._store.steer(path.id, (steered,)):
                raise CannotDo("A process has begun to execute the run: try again.")
        else:
            self._require_held(overview)

    async def drain(self, path: RunPath, reason: str) -> None:
        """Let a root run start nothing more; see ``RunHandle.drain``.

        Raises:
            CannotDo: Nothing executes it.
        """
        runtime = self._runtime()
        handle = None if runtime is None else runtime.find(path.root.id)
        if handle is not None and handle.status is None:
            handle.drain(reason)
            return
        self._require_held(await self._queries.overview(path.root))
        await self._leave(path, "drain", {"reason": reason})

    async def resume(self, path: RunPath) -> None:
        """Run a run again from where it stood.

        Raises:
            CannotDo: Another process executes it, or its application isn't known here.
        """
        application, runtime = await self._executable(path)
        await self._start(runtime, lambda: application.start(id=path.id, runtime=runtime))

    async def retry(self, path: RunPath) -> None:
        """Run the children of a run that have failed again.

        Raises:
            CannotDo: Another process executes it, or its application isn't known here.
        """
        application, runtime = await self._executable(path)
        await self._start(runtime, lambda: application.retry_failed(path.id, runtime=runtime))

    async def answer(self, path: RunPath, id_: str, sent: Mapping[str, str]) -> None:
        """Answer a question of a run.

        Raises:
            BadAnswer: The answer isn't one that the question allows.
            CannotDo: The question is gone, or nobody can take the answer.
        """
        question = await question_of(self._queries.inspected, path, id_)
        if question is None:
            raise CannotDo("This question is no longer open: it was answered, or its step ended.")
        answer = answer_from(schema_asked(question), sent)
        wrong = misfit(answer, question.answer_schema or {})
        if wrong is not None:
            raise BadAnswer(wrong.text)
        overview = await self._queries.overview(path.root)
        if overview.summary.holder:
            await self._leave(path, "answer", {"question": id_, "answer": answer})
            return
        application, runtime = await self._executable(path.root)
        answers = {(path.id, question.name): answer}
        await self._start(
            runtime, lambda: application.start(id=path.root.id, answers=answers, runtime=runtime)
        )

    async def change_limit(self, path: RunPath, arguments: Mapping[str, Any]) -> None:
        """Change a limit in the process that executes a run.

        Raises:
            CannotDo: Nothing executes the run.
        """
        self._require_held(await self._queries.overview(path))
        await self._leave(path, "change limits", dict(arguments))

    async def pause_limit(self, path: RunPath, arguments: Mapping[str, Any], *, ends: bool) -> None:
        """Pause a limit in the process that executes a run, or let it go on.

        Raises:
            CannotDo: Nothing executes the run.
        """
        self._require_held(await self._queries.overview(path))
        await self._leave(path, "resume limit" if ends else "pause limit", dict(arguments))

    async def _executable(self, path: RunPath) -> tuple[Application[Any], Runtime]:
        overview = await self._queries.overview(path)
        name = overview.summary.application
        application, runtime = self._applications.get(name), self._runtime()
        if overview.summary.holder:
            raise CannotDo(f"It is executed already, by {overview.summary.holder}.")
        if application is None:
            raise CannotDo(
                f"The application {name!r} isn't known here: start shoal ui with --app module:app, "
                f"or give it to create_app(applications=)."
            )
        missing = await self._secrets.of(path.root.id, name)
        if missing:
            raise CannotDo(why_not_here(missing))
        if runtime is None:
            raise CannotDo("Nothing can be executed here: give create_app() a runtime=.")
        return application, runtime

    def _require_held(self, overview: Overview) -> None:
        if not overview.summary.holder:
            raise CannotDo("No process executes this run now, so none can take the request.")

    async def _leave(self, path: RunPath, kind: CommandKind, arguments: dict[str, Any]) -> None:
        """Leave a command for the process that executes a run, and wait until it is carried out.

        If that takes longer than ``DONE_WITHIN``, the command stays until it is taken.

        Raises:
            CannotDo: The process takes no commands, or has refused this one.
        """
        if not isinstance(self._store, KeepsReports):
            name = type(self._store).__name__
            raise CannotDo(
                f"Another process executes this run, and {name} carries no commands to it."
            )
        with move_on_after(PATIENCE):
            while await self._is_silent(path):  # noqa: ASYNC110 # another process reports
                await sleep(PATIENCE / 10)
        if await self._is_silent(path):
            raise CannotDo(
                "The process that executes this run doesn't report about it, so it takes no "
                "requests. It takes them if the run is watched: leave out watch=False, or set "
                "watch=True."
            )
        id_ = new_run_id()
        told = {**arguments, "by": BY, "id": id_}
        await self._store.command(Command(run_id=path.root.id, kind=kind, arguments=told))
        with move_on_after(DONE_WITHIN):
            while not await self._is_done(path.root, id_, kind):  # noqa: ASYNC110 # as above
                await sleep(DONE_WITHIN / 20)

    async def _is_done(self, path: RunPath, id_: str, kind: CommandKind) -> bool:
        """Return whether a command was carried out.

        Raises:
            CannotDo: The process has refused it.
        """
        for one in reversed(await self._queries.steered(path)):
            if one.arguments.get("id") == id_:
                if one.what != kind:
                    why = one.arguments.get("why", "it says not why")
                    raise CannotDo(f"The process that executes the run has refused that: {why}.")
                return True
        return False

    async def _is_silent(self, path: RunPath) -> bool:
        return (await self._queries.overview(path.root)).is_silent

    async def _start(self, runtime: Runtime, call: Callable[[], Awaitable[object]]) -> None:
        """Call in a task that outlives the request, and raise what it raises at once."""
        ended, failure = Event(), list[Exception]()

        async def execute() -> None:
            try:
                await call()
            except Exception as error:  # noqa: BLE001 # told to the page, or logged
                failure.append(error)
                if not isinstance(error, ShoalError):
                    log.info("a run that was started from the page has failed: %s", error)
            ended.set()

        tasks = self._tasks()
        if tasks is None:  # mounted: its lifespan isn't run, and the runtime is somebody else's
            runtime.services.host(execute, _no_reason)
        else:
            tasks.start_soon(execute)
        with move_on_after(PATIENCE):
            await ended.wait()
        if failure and isinstance(failure[0], ShoalError):
            raise CannotDo(str(failure[0])) from failure[0]


def _no_reason(_: str) -> None:
    """Take no notice of why a call is cancelled: its run has its own reason."""
