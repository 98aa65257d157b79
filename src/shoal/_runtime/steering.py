"""``Control``: steer runs that other processes execute, through the store that has them.

Invariants:
- What was carried out is on record in the run's history before ``Control`` says that it was.
- A request is carried out by the process that executes the run, or not at all. Only a pause, and
  its end, can be noted for a run that no process executes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast, final

from anyio import move_on_after, sleep

from shoal._errors.exceptions import BadAnswer, BadUse, NotSteered, UnknownRun, brief
from shoal._events.identity import RunPath, new_run_id
from shoal._events.paths import key_data, parse_path
from shoal._events.report_text import parse_report
from shoal.stores._history import QuestionAnswered, Steered, pause_in
from shoal.stores._protocol import Browses, RunSummary, Store, similar_run
from shoal.stores._watching import Command, CommandKind, Inspects, KeepsReports, Steers

from .answers import Asked, kept_answer, refusal_of

PATIENCE = 5.0
"""Seconds to wait until a process has carried out what was asked: it looks for commands four times
a second, and may be busy, or its store slow."""
LOOKS = 0.05
"""Seconds between two looks whether it has."""
SILENT = 2.0
"""Seconds after which a run that is watched has reported, also if its store is slow."""
NUMBERS = {"n": "n", "rate": "max_rate", "per": "per", "burst": "burst"}
"""The numbers of a limit, and what commands call them."""


@final
class Control:
    """Steers runs from another process: pauses, resumes and cancels them, and changes limits.

    The process that executes a run takes requests from the store four times a second, and puts what
    it has carried out on record in the run's history (``Queries.steered``). Each method waits for
    that record and returns it, so when it returns, it is done. In the process that executes the run
    itself, ``RunHandle`` and ``Limiter`` have the same, without a store.

    Runs with ``watch=False`` take no requests, and neither does a process without a shared store.

    Examples:
        >>> import anyio
        >>> from shoal.watch import Control
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     await anyio.sleep(0.05)
        ...     return n * n
        >>> step = fan_out(square, over="ns", item="n", into="squares", limits=Limits(1))
        >>> squares = Application(step, watch=True)
        >>> async def main() -> None:
        ...     store = MemoryStore()
        ...     control = Control(store, by="ops")  # in another process, with its own store object
        ...     async with Runtime(store=store) as runtime:
        ...         run = await runtime.start(squares, {"ns": [1, 2, 3]}, id="s")
        ...         await run.pause()
        ...         record = await control.resume("s", "the service is back")
        ...         print(record.what, record.by, record.reason)
        ...         print((await run.result()).state["squares"])
        >>> anyio.run(main)
        resume ops the service is back
        [1, 4, 9]
    """

    def __init__(self, store: Browses, *, by: str = "", patience: float = PATIENCE) -> None:
        """Steer the runs that ``store`` has.

        Args:
            store: A store that other processes save to, opened.
            by: Who asks, for the record.
            patience: Seconds to wait until a request was carried out.

        Raises:
            BadUse: The store carries no requests; see ``shoal.stores.KeepsReports``.
        """
        if not isinstance(store, KeepsReports):
            msg = f"{brief(store)} carries no requests to other processes: it has no command()"
            raise BadUse(msg)
        self._store: Browses = store
        self._carrier: KeepsReports = store
        self._by = by
        self._patience = patience

    async def pause(self, run_id: str, reason: str = "") -> Steered:
        """Start nothing more in a run until ``resume``; see ``RunHandle.pause``.

        A run that no process executes, because that has died or the run waits for answers, is
        paused as well: it starts nothing when it is resumed. Of a run that is paused already, the
        record of that is returned.

        Raises:
            UnknownRun: The store has no such run. So in all methods.
            NotSteered: The run has ended, or the process that executes it takes no requests, or has
                refused this one; the message says which. So in all methods.
        """
        paused = await pause_of(self._store, await self._root(run_id))
        return paused or await self.have_done(run_id, "pause", _why(reason))

    async def resume(self, run_id: str, reason: str = "") -> Steered | None:
        """Let a paused run go on; return None if it isn't paused.

        A run that no process executes goes on when a program resumes it.
        """
        if await pause_of(self._store, await self._root(run_id)) is None:
            return None
        return await self.have_done(run_id, "resume", _why(reason))

    async def cancel(self, run: str | RunPath, reason: str = "") -> Steered:
        """Cancel a run, or one child with its descendants.

        Args:
            run: The id of a root run; or the path of a child, also as text (see ``path_text``).
            reason: Why; it becomes the reason of the cancelled run.
        """
        path = parse_path(run) if isinstance(run, str) else run
        if path.parent is None:
            return await self.have_done(path.id, "cancel", _why(reason))
        named = {"path": names_of(path), **_why(reason)}
        return await self.have_done(path.root.id, "cancel child", named)

    async def answer(self, question: Asked, value: object) -> Steered:
        """Answer an open question; see ``Queries.questions``.

        If a process executes the run, the child that has asked goes on at once, or when the run is
        run again; see ``RunHandle.questions``. If none does, the answer is saved, and the run goes
        on when it is run again: ``app.run(id=...)``.

        Args:
            question: What is answered: an ``OpenQuestion`` or a ``Question``.
            value: The answer, as JSON.

        Raises:
            BadAnswer: It is no answer to the question.
        """
        wrong = refusal_of(question, value)
        if wrong is not None:
            msg = f"{brief(value)} is no answer to {question.name!r}: {wrong.text}"
            raise BadAnswer(msg, question.name, wrong.why, wrong.place)
        answer = kept_answer(question, value)
        arguments = {"question": question.id, "answer": answer}
        return await self.have_done(question.path.root.id, "answer", arguments)

    async def drain(self, run_id: str, reason: str = "") -> Steered:
        """Let a run start nothing more, and halt when what runs has ended; see ``RunHandle.drain``.

        Unlike a pause it ends this execution, so that the process may stop. The next ``run`` of the
        id goes on with the rest, wherever it is called.
        """
        return await self.have_done(run_id, "drain", _why(reason))

    async def change_limit(
        self,
        run_id: str,
        owner: str,
        *,
        part: int = 0,
        n: int | None = None,
        rate: float | None = None,
        per: float | None = None,
        burst: float | None = None,
    ) -> Steered:
        """Change numbers of a limit in the process that executes a run.

        They last as long as the runtime there.

        Args:
            run_id: A run that uses the limit. A limit of a runtime, an application or an action is
                changed for all runs of that process.
            owner: Where the limit stands: ``"runtime"``, or the name of an application, action or
                fan-out, as in ``LimitUse``.
            part: Which part of its limits, from 0; -1: the children in flight of a fan-out.
            n: Slots.
            rate: Units of the rate...
            per: ...in so many seconds.
            burst: Units that may go at once.
        """
        given = {"n": n, "rate": rate, "per": per, "burst": burst}
        numbers = {NUMBERS[name]: value for name, value in given.items() if value is not None}
        if not numbers:
            msg = "change_limit() takes at least one number: n=, rate=, per= or burst="
            raise BadUse(msg)
        return await self.have_done(
            run_id, "change limits", {"owner": owner, "part": part, **numbers}
        )

    async def pause_limit(
        self, run_id: str, owner: str, *, part: int = 0, key: str | None = None, reason: str = ""
    ) -> Steered:
        """Start nothing more that needs a limit, or one key of it; see ``Limiter.pause``.

        It lasts as long as the runtime of the process that executes the run.

        Args:
            run_id: A run that uses the limit.
            owner: Where it stands; see ``change_limit``.
            part: Which part of its limits, from 0.
            key: Only this key, as text; None: all.
            reason: Why, for the record.
        """
        arguments = {**_of_limit(owner, part, key), **_why(reason)}
        return await self.have_done(run_id, "pause limit", arguments)

    async def resume_limit(
        self, run_id: str, owner: str, *, part: int = 0, key: str | None = None, reason: str = ""
    ) -> Steered:
        """End ``pause_limit``; the arguments are the same."""
        arguments = {**_of_limit(owner, part, key), **_why(reason)}
        return await self.have_done(run_id, "resume limit", arguments)

    async def have_done(
        self, run_id: str, kind: CommandKind, arguments: Mapping[str, Any]
    ) -> Steered:
        """Have a command carried out; return what is on record of it.

        Args:
            run_id: The root run.
            kind: What is asked for.
            arguments: As in ``Command``.
        """
        while True:
            path, summary = await self._summary(run_id)
            if summary.holder:
                return await self._ask_holder(path, summary, kind, arguments)
            noted = await self._note(summary, kind, arguments)
            if noted is not None:
                return noted
            # A process has begun to execute the run since.

    async def _root(self, run_id: str) -> RunPath:
        return (await self._summary(run_id))[0]

    async def _summary(self, run_id: str) -> tuple[RunPath, RunSummary]:
        summary = await self._store.summary(run_id)
        if summary is None:
            similar = await similar_run(self._store, run_id)
            raise UnknownRun(f"there is no run {run_id!r}", similar)
        return RunPath(run_id=run_id, act=summary.application), summary

    async def _note(
        self, summary: RunSummary, kind: CommandKind, arguments: Mapping[str, Any]
    ) -> Steered | None:
        """Note a pause, or its end, for the next execution; None if there is one by now."""
        run_id, status, given = summary.run_id, summary.status, dict(arguments)
        if status not in ("running", "halted"):
            raise NotSteered(f"run {run_id} has {'been ' * (status == 'cancelled')}{status}")
        if kind not in ("pause", "resume", "answer"):
            msg = (
                f"no process executes run {run_id} now, so none can do that: its process has died, "
                f"or it waits for answers. Resume it, and ask again; or pause it, and it starts "
                f"nothing when it is resumed"
            )
            raise NotSteered(msg)
        if not isinstance(self._store, Steers):
            msg = f"no process executes run {run_id} now, and {brief(self._store)} notes nothing"
            raise NotSteered(msg)
        entries: list[Steered | QuestionAnswered] = []
        if kind == "answer":
            entries.append(QuestionAnswered(given["question"], given.pop("answer")))
        noted = Steered(kind, self._by, time.time(), given)
        return noted if await self._store.steer(run_id, (*entries, noted)) else None

    async def _ask_holder(
        self, path: RunPath, summary: RunSummary, kind: CommandKind, arguments: Mapping[str, Any]
    ) -> Steered:
        """Leave a command for the process that executes a run, and wait until it is on record."""
        id_, run_id = new_run_id(), path.id
        with move_on_after(self._patience):
            while await self._is_silent(summary):  # noqa: ASYNC110 # another process
                await sleep(LOOKS)
            told = {**arguments, "by": self._by, "id": id_}
            await self._carrier.command(Command(run_id=run_id, kind=kind, arguments=told))
            while True:
                # Before the history: a run may end right after it has carried that out.
                now = (await self._summary(run_id))[1]
                for one in reversed(await steered_of(self._store, path)):
                    if one.arguments.get("id") == id_:
                        return _done(one, run_id, kind)
                if not now.holder:
                    msg = f"run {run_id} has ended meanwhile ({now.status})"
                    raise NotSteered(msg)
                await sleep(LOOKS)
        if await self._is_silent(summary):
            msg = (
                f"{summary.holder} executes run {run_id} and doesn't report about it, so it takes "
                f"no requests. It does if the run is watched: leave out watch=False"
            )
            raise NotSteered(msg)
        msg = (
            f"{summary.holder} executes run {run_id}, and has not taken the request within "
            f"{self._patience:g} s: its event loop is blocked, or its store is slow. The request "
            f"stays until it is taken, or the process ends"
        )
        raise NotSteered(msg)

    async def _is_silent(self, summary: RunSummary) -> bool:
        """Return whether the process that executes a run has not reported in this execution."""
        stored = await self._carrier.reported(summary.run_id)
        if stored is not None and not parse_report(stored.text).is_over:
            return False
        return time.time() - summary.began_at > SILENT


async def steered_of(store: object, path: RunPath) -> Sequence[Steered]:
    """Return how the root run of ``path`` was steered, in order."""
    if not isinstance(store, Inspects):
        entries = await cast("Store", store).read(path.root)
        return [one for one in entries if isinstance(one, Steered)]
    found: list[Steered] = []
    number: int | None = 0
    while number is not None:
        part, number = await store.entries(path.root, kinds=("steered",), from_number=number)
        found += (Steered(*json.loads(entry.data)) for entry in part)
    return found


async def pause_of(store: object, path: RunPath) -> Steered | None:
    """Return the pause under which the root run of ``path`` is; None if it isn't paused."""
    return pause_in(await steered_of(store, path))


def names_of(path: RunPath) -> list[object]:
    """Return the path of a child as commands have it."""
    names: list[object] = []
    at = path
    while at.parent is not None:
        names.insert(0, [at.step, at.visit, at.act, key_data(at.key)])
        at = at.parent
    return names


def _of_limit(owner: str, part: int, key: str | None) -> dict[str, Any]:
    keyed = {} if key is None else {"key": key}
    return {"owner": owner, "part": part, **keyed}


def _why(reason: str) -> dict[str, Any]:
    return {"reason": reason} if reason else {}


def _done(one: Steered, run_id: str, kind: CommandKind) -> Steered:
    if one.what == kind:
        return one
    raise NotSteered(f"run {run_id}: {one.arguments.get('why', 'it was refused')}")
