"""Recovery: the runs that dead processes have left are found and resumed.

Invariants:
- A run that can't be resumed, or fails again, does nothing to the others.
- At most ``AT_ONCE`` recovered runs are under way at once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, final

from anyio import Event, create_task_group, move_on_after

from shoal._errors.exceptions import (
    BadResult,
    BadUse,
    DefinitionError,
    Draining,
    NoApplication,
    StoreFailed,
    brief,
    did_you_mean,
    kind_of,
)
from shoal._events.events import in_short
from shoal._limits.flows import WEIGHTS
from shoal._state.state import held
from shoal.stores._protocol import FindsOrphans, NullStore, Orphan, Store

from .apps import Recoverable
from .start import refuse_missing

logger = logging.getLogger("shoal")

AT_ONCE = 100
"""Runs that are recovered at once."""


GivenSecrets = Mapping[str, object] | Awaitable[Mapping[str, object]]
"""The secret fields of a run, or an awaitable of them."""
Secrets = Mapping[str, object] | Callable[[Orphan], GivenSecrets]
"""The secret fields of all orphans, or a function that returns those of one."""

Found = tuple[Orphan, Recoverable | None]
"""A run that has no end and that nothing executes, and the application to resume it under; None: no
application fits."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What became of a run that a dead process had left: its result, or why it has none."""

    run_id: str
    application: str
    """The name of its application."""
    version: str
    """The version of the application that the run was started with."""
    result: Any = None
    """The run's ``RunResult``; None if it has none."""
    error: Exception | None = None
    """What the run failed with, or why it was not resumed; None if it has a result."""


@final
class Recoverables:
    """The applications of a runtime, and the stores of their runs."""

    def __init__(self, apps: Iterable[Recoverable], store: Store) -> None:
        """Check the applications.

        Args:
            apps: The applications.
            store: Where the runs of an application without a store of its own are saved.

        Raises:
            DefinitionError: One of them is no application, or two have one name and version.
        """
        self._store = store
        self.by_name: Mapping[tuple[str, str], Recoverable] = _by_name(apps)

    @property
    def have_orphans(self) -> bool:
        """Whether there are applications, and all their stores can find orphans."""
        stores = [self._store_of(app) for app in self.by_name.values()]
        return bool(stores) and all(isinstance(store, FindsOrphans) for store in stores)

    def stores(self) -> Sequence[Store]:
        """Return the stores that runs are saved in, each once."""
        stores = [self._store, *(self._store_of(app) for app in self.by_name.values())]
        by_identity = {id(store): store for store in stores if not isinstance(store, NullStore)}
        return list(by_identity.values())

    def _store_of(self, app: Recoverable) -> Store:
        return self._store if app.store is None else app.store

    def check(self) -> None:
        """Refuse to look for orphans if a store can't find them.

        Raises:
            BadUse: There are no applications, or the store of one can't find orphans.
        """
        if not self.by_name:
            msg = (
                "this runtime can recover no runs, because it has no applications: "
                "Runtime(apps=[...])"
            )
            raise BadUse(msg)
        for app in self.by_name.values():
            store = self._store_of(app)
            if not isinstance(store, FindsOrphans):
                is_kept = not isinstance(store, NullStore)
                why = f"{brief(store)} has no orphans()" if is_kept else "they are saved nowhere"
                msg = (
                    f"the runs of application {app.name!r} can't be recovered, because {why}; give "
                    f"it, or the runtime, a store that can find orphans, as SQLiteStore can"
                )
                raise BadUse(msg)

    async def orphans(self) -> list[Found]:
        """Ask each store once; return its orphans, each with the application to resume it under.

        Raises:
            StoreFailed: A store could not be read.
        """
        stores: dict[int, tuple[FindsOrphans, dict[tuple[str, str], Recoverable]]] = {}
        for name, app in self.by_name.items():
            store = self._store_of(app)
            assert isinstance(store, FindsOrphans), "others were refused"
            stores.setdefault(id(store), (store, {}))[1][name] = app
        found: list[Found] = []
        for store, apps in stores.values():
            try:
                orphans = await store.orphans()
            except StoreFailed:
                raise
            except Exception as error:
                msg = f"{brief(store)} could not be asked for orphans: {brief(error)}"
                raise StoreFailed(msg) from error
            # Those that are paused rest: recovered, each would take a place and do nothing.
            found += [
                (one, apps.get((one.application, one.version)))
                for one in orphans
                if not one.is_paused
            ]
        # Only so many go on at once, and the urgent ones should be among these.
        return sorted(found, key=lambda one: -WEIGHTS[one[0].priority or "normal"])

    def why_none(self, orphan: Orphan) -> NoApplication:
        """Return the error for an orphan that no application fits."""
        run_id, name, version, *_ = orphan
        versions = [repr(other) for named, other in self.by_name if named == name]
        if versions:
            return NoApplication(
                f"run {run_id} was started with version {version!r} of application {name!r}, and "
                f"the runtime has only {', '.join(versions)}; resume it where that version runs, "
                f"or start a new run from what it has: fork({run_id!r})"
            )
        names = sorted({named for named, _ in self.by_name})
        return NoApplication(
            f"run {run_id} is of application {name!r}, which the runtime does not have (it has: "
            f"{', '.join(names)}){did_you_mean(name, names)}; name it in Runtime(apps=[...])"
        )


@final
class Recovery:
    """Resumes a number of orphans, some at once, and waits until all have ended."""

    def __init__(
        self,
        recoverables: Recoverables,
        orphans: Sequence[Found],
        runtime: object,
        report: Callable[[Recovered], object],
        secrets: Secrets | None,
    ) -> None:
        """Plan it.

        Args:
            recoverables: The applications.
            orphans: What to resume.
            runtime: Where.
            report: Called with what became of each orphan that no other process has resumed.
            secrets: The secret fields of the orphans.
        """
        self._recoverables = recoverables
        self._remaining = iter(orphans)  # shared by the workers, each of which takes the next
        self._at_once = min(len(orphans), AT_ONCE)
        self._runtime = runtime
        self._report = report
        self._secrets = secrets

    def on_cancel(self, reason: str) -> None:
        """Do nothing: each run is cancelled by the wait for it, which knows the reason."""

    async def run(self) -> None:
        """Resume all orphans."""
        async with create_task_group() as tasks:
            for _ in range(self._at_once):
                tasks.start_soon(self._work)

    async def _work(self) -> None:
        for orphan, app in self._remaining:
            recovered = await self._recover(orphan, app)
            if recovered is not None:
                self._report(recovered)

    async def _recover(self, orphan: Orphan, app: Recoverable | None) -> Recovered | None:
        run_id, name, version, *_ = orphan
        recovered = partial(Recovered, run_id=run_id, application=name, version=version)
        if app is None:
            return recovered(error=self._recoverables.why_none(orphan))
        try:
            state = await _secrets_of(orphan, self._secrets)
            result = await app.recover(
                run_id, state, priority=orphan.priority, runtime=self._runtime
            )
        except Exception as error:  # noqa: BLE001 # the caller reads it in what is returned
            return recovered(error=error)
        return None if result is None else recovered(result=result)


@final
class Watch:
    """Looks for orphans again and again, and resumes those that it finds."""

    def __init__(
        self,
        recoverables: Recoverables,
        runtime: object,
        over: Event,
        secrets: Secrets | None = None,
    ) -> None:
        """Plan it.

        Args:
            recoverables: The applications.
            runtime: Where orphans are resumed.
            over: Set when it is to end.
            secrets: The secret fields of the orphans.
        """
        self._secrets = secrets
        self._recoverables = recoverables
        self._runtime = runtime
        self._over = over
        self._under_way: set[str] = set()
        # What was logged once, and is not logged at the next look: ids of runs, and names and
        # versions of applications that this runtime doesn't have.
        self._refused: set[str] = set()
        self._others: set[tuple[str, str]] = set()
        self._freed = Event()  # set when a resumed run has ended; a new one for each wait

    async def keep(self, every: float) -> None:
        """Look every so many seconds; sooner if more were found than may go on at once."""
        async with create_task_group() as tasks:
            while not self._over.is_set():
                found = await self._look()
                self._warn_of_others([orphan for orphan, app in found if app is None])
                for orphan, app in found:
                    if app is None:
                        continue
                    if orphan.run_id not in self._under_way:
                        await self._wait_for_place()
                        if self._over.is_set():
                            break
                        self._under_way.add(orphan.run_id)
                        tasks.start_soon(self._resume, orphan, app)
                with move_on_after(every):
                    await self._over.wait()

    async def _wait_for_place(self) -> None:
        """Wait until one more run may go on, or it is over."""
        while len(self._under_way) >= AT_ONCE and not self._over.is_set():
            self._freed = Event()
            async with create_task_group() as tasks:
                for event in (self._freed, self._over):
                    tasks.start_soon(_wake, event, tasks.cancel_scope.cancel)

    async def _look(self) -> Sequence[Found]:
        try:
            return await self._recoverables.orphans()
        except StoreFailed as error:
            logger.warning("a store could not be asked for orphans now: %s", error)
            return ()

    async def _resume(self, orphan: Orphan, app: Recoverable) -> None:
        run_id = orphan.run_id
        try:
            state = await _secrets_of(orphan, self._secrets)
            handle = await app.take_over(
                run_id, state, priority=orphan.priority, runtime=self._runtime
            )
            if handle is not None:
                logger.info("run %s of %r was left by a process; it goes on", run_id, app.name)
                await handle.wait_ended()
        except Draining:
            pass  # another process will resume it
        except Exception as error:  # noqa: BLE001 # it must not end the other runs' tasks
            self._refuse(orphan, error)
        finally:
            self._under_way.discard(run_id)
            self._freed.set()

    def _warn_of_others(self, orphans: Sequence[Orphan]) -> None:
        """Warn of runs that no application here fits: once for each application and version.

        If services share a store, such runs are mostly those of another service.
        """
        by_kind: dict[tuple[str, str], list[Orphan]] = {}
        for one in orphans:
            by_kind.setdefault((one.application, one.version), []).append(one)
        new = {kind: found for kind, found in by_kind.items() if kind not in self._others}
        self._others |= new.keys()
        if not new:
            return
        first = next(iter(new.values()))[0]
        if sum(map(len, new.values())) == 1:
            self._refuse(first, self._recoverables.why_none(first))
            return
        kinds = [
            f"{len(found)} of version {version!r} of application {name!r}"
            for (name, version), found in new.items()
        ]
        logger.warning(
            "runs are left where they stand, because no application of this runtime fits: %s. "
            "This is logged once; run %s, for one: %s",
            ", ".join(kinds),
            first.run_id,
            in_short(self._recoverables.why_none(first)),
        )

    def _refuse(self, orphan: Orphan, why: Exception) -> None:
        if orphan.run_id not in self._refused:
            self._refused.add(orphan.run_id)
            logger.warning("run %s is left where it stands: %s", orphan.run_id, in_short(why))


async def _wake(event: Event, call: Callable[[], object]) -> None:
    await event.wait()
    call()


def check_secrets(secrets: object, where: str) -> None:
    """Refuse ``secrets`` that are neither a mapping nor a function.

    Raises:
        BadUse: They are neither.
    """
    if not (secrets is None or isinstance(secrets, Mapping) or callable(secrets)):
        msg = f"{where}(secrets=...) takes a mapping or a function, not {kind_of(secrets)}"
        raise BadUse(msg)


async def _secrets_of(orphan: Orphan, secrets: Secrets | None) -> Mapping[str, object] | None:
    """Return the secret fields of an orphan, before the run is claimed; None if it has none.

    Raises:
        MissingSecret: Not all of them are given.
        BadResult: The function that looks them up has returned no mapping.
    """
    if not orphan.secret:
        return None
    given: object = secrets
    if callable(given):
        given = given(orphan)
        if isinstance(given, Awaitable):
            given = await cast("Awaitable[object]", given)
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        msg = (
            f"recover(secrets=...) returned {kind_of(given)} for run {orphan.run_id}; it "
            f"returns a mapping of secret fields to values"
        )
        raise BadResult(msg)
    found = held(cast("Mapping[str, object]", given))
    refuse_missing(orphan.run_id, orphan.secret, found)
    return {name: found[name] for name in orphan.secret}


def _by_name(apps: Iterable[Recoverable]) -> Mapping[tuple[str, str], Recoverable]:
    found: dict[tuple[str, str], Recoverable] = {}
    for app in apps:
        if isinstance(app, type) or not callable(getattr(app, "recover", None)):
            msg = f"Runtime(apps=...) takes a list of applications, not of {brief(app)}"
            raise DefinitionError(msg)
        if (app.name, app.version) in found:
            msg = (
                f"Runtime(apps=...) has two applications {app.name!r} of version {app.version!r}; "
                f"their runs can't be told apart: give one another name, or version"
            )
            raise DefinitionError(msg)
        found[app.name, app.version] = app
    return found
