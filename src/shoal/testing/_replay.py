"""`replay`: execute the present program on the outcomes of a stored run, and compare.

Invariants:
- No function of a leaf action is called, no worker is started, no hook of the application receives
  an event, and nothing is saved in a store of the program's.
- Everything else is the present program: its graph, conditions, reducers, limits, retries, races.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NoReturn, final

import anyio

from shoal._engine.injection import INJECTION
from shoal._errors.exceptions import BadUse, brief
from shoal._events.identity import RunPath
from shoal._graph.parallel import stores_within
from shoal._limits.shared_rates import KEPT_HERE
from shoal._runtime.application import Application
from shoal._runtime.runtime import Runtime
from shoal._state.state import State
from shoal.rates._memory import MemoryRates
from shoal.stores._codec.codec import Codec
from shoal.stores._history import play
from shoal.stores._memory import MemoryStore
from shoal.stores._protocol import Batch, Beginning, Store
from shoal.stores._results import Results

from ._clock import run_virtual
from ._differences import Difference, end_difference, first_difference
from ._hand_made import HandMadeRun
from ._recorded import Data, Recording, read_run
from ._serving import Conductor

_FORK = "shoal.testing.replay"


@final
class ReplayDiffers(AssertionError):
    """The present program decides something else than a recorded run did.

    Attributes:
        difference: the first decision that differs.
    """

    def __init__(self, recording: Recording, difference: Difference) -> None:
        self.difference = difference
        super().__init__(
            f"application {recording.application!r} differs from its recorded run "
            f"{recording.run_id!r} ({difference.kind}):\n{difference}"
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay without a difference has shown.

    Attributes:
        status: how the run ended: "succeeded", "failed", "halted"; "running" if the record ends
            before that.
        is_complete: whether the record reached to the end of the run. One of a run that was
            cancelled or killed doesn't.
        runs: the runs that were compared: the root and all its descendants.
        served: how often an outcome was served in place of a call.
        called: the names of the actions that were called, because they start children themselves.
        state: the fields of the last state.
    """

    status: str
    is_complete: bool
    runs: int
    served: int
    called: frozenset[str]
    state: Mapping[str, Any]


@final
class NotRecorded:
    """Stands for an input that a replay was not given: leaf actions are not called."""

    def __init__(self, name: str) -> None:
        """Stand for the input of that name."""
        self._name = name
        self._error: BadUse | None = None

    @property
    def misused(self) -> BadUse | None:
        """The error for its first use; None if nothing has used it."""
        return self._error

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        self._refuse(f".{attribute}")

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Refuse to be called."""
        self._refuse("(...)")

    def _refuse(self, use: str) -> NoReturn:
        msg = (
            f"the replay calls an action that uses the input {self._name!r} ({self._name}{use}), "
            f"because it starts children itself, and inputs are not recorded; give a fake: "
            f"replay(..., inputs={{{self._name!r}: ...}})"
        )
        self._error = BadUse(msg)
        raise self._error


def replay(
    app: Application[Any],
    recorded: Store | str | PathLike[str],
    run_id: str | None = None,
    *,
    inputs: Mapping[str, object] | None = None,
    secrets: Mapping[str, object] | None = None,
    codec: Codec | None = None,
    backend: Literal["asyncio", "trio"] = "asyncio",
    seed: int | None = None,
) -> Replayed:
    """Execute an application on the outcomes of a stored run; fail at the first other decision.

    The present graph runs in virtual time. Each call of an action is served what the recorded run
    has of it: its change, or its failure. So no leaf action is called, and no token is paid for.
    Everything around is the present program, and its decisions are compared with the recorded ones:
    the edges it takes, the keys it runs, the winners of its races, the attempts it makes, the
    updates of its reducers.

    >>> @action(reads=["n"], writes=["square"])
    ... async def square(n: int) -> int:
    ...     return n * n
    >>> app = Application(fan_out(square, over="ns", item="n", key=str, into="squares"))
    >>> app.store = MemoryStore()
    >>> result = app.run_sync({"ns": [1, 2, 3]}, id="today")
    >>> replay(app, app.store, "today").served
    3

    Outcomes arrive in the recorded order, which decides races. An action that starts children
    itself, with ``context.fan_out``, is called; its children are served. Questions have their
    recorded answers. A run that was cancelled, halted, or killed is replayed as far as its record
    goes. Hooks receive nothing; stores, executors, and backends of shared limits are not used.

    What a record can't tell is not compared: what an action would return today, and partial items,
    which no store keeps (races that an item decided have their recorded winner). A cached result is
    an outcome like others. Of children that keep nothing (``fan_out(store=None)``) only the ends
    are compared. The times of earlier, failed attempts are not on record, nor are their errors.

    It starts an event loop, so it is called outside of one, as in a plain test function.

    Args:
        app: the present application.
        recorded: a store that has the run, or a file that ``shoal export --as-test`` has written.
        run_id: the run, if ``recorded`` is a store.
        inputs: fakes for what actions that are called take besides fields.
        secrets: secret fields of the run, which are not recorded. By default the name of a field
            in angle brackets: ``"<token>"``.
        codec: the codec of the recording store, if it knows further types.
        backend: "asyncio" or "trio".
        seed: decides the order of simultaneous steps, see `run_virtual`.

    Raises:
        ReplayDiffers: the program decides something else; ``difference`` and the message say what.
        UnknownRun: the store has no such run.
        BadUse: the run is of another application, or can't be read; or an action that is called
            uses an input that was not given.
        NotDecodable: a type of the record is gone.
    """
    __tracebackhide__ = True  # pytest shows the difference, and no code of this function
    recording = Recording(_data_of(app, recorded, run_id, backend))
    if recording.application != app.name:
        msg = (
            f"the recorded run {recording.run_id!r} is of the application "
            f"{recording.application!r}, and this one is {app.name!r}: replay it with that one, or "
            f"give this one its name, Application(..., name={recording.application!r})"
        )
        raise BadUse(msg)
    attempt = partial(_execute, app, recording, inputs or {}, secrets or {}, codec or Codec())
    ended: _Ended = run_virtual(attempt, backend=backend, seed=seed)
    now = Recording(ended.data)
    found = first_difference(recording.root, now.root)
    found = found or ended.difference or end_difference(recording.root, now.root)
    if found is None and ended.waits_for is not None and recording.root.is_over:
        found = ended.waits_for
    if found is not None:
        raise ReplayDiffers(recording, found)
    if ended.error is not None and now.root.status not in ("failed", "cancelled", "halted"):
        raise ended.error
    return Replayed(
        status=now.root.status,
        is_complete=recording.root.status == now.root.status != "running",
        runs=len(now),
        served=ended.served,
        called=ended.called,
        state=ended.state,
    )


def _data_of(
    app: Application[Any],
    recorded: Store | str | PathLike[str],
    run_id: str | None,
    backend: Literal["asyncio", "trio"],
) -> Data:
    if isinstance(recorded, str | PathLike):
        if run_id is not None:
            msg = (
                f"replay(..., {brief(run_id)}) names a run of a store, and a fixture has one run: "
                f"leave the id out, or give the store, SQLiteStore({str(recorded)!r})"
            )
            raise BadUse(msg)
        path = Path(recorded)
        try:
            data: Data = json.loads(path.read_text("utf-8"))
        except OSError as error:
            msg = f"the recorded run {path} can't be read: {error.strerror or error}"
            raise BadUse(msg) from error
        except ValueError as error:
            msg = f"{path} is no recorded run: {error} (`shoal export RUN --as-test` writes one)"
            raise BadUse(msg) from error
        return data
    if run_id is None:
        msg = "which run of the store? replay(app, store, run_id)"
        raise BadUse(msg)
    return anyio.run(read_run, recorded, run_id, tuple(stores_within(app.graph)), backend=backend)


@final
@dataclass(slots=True, kw_only=True)
class _Ended:
    """What one execution came to."""

    data: Data
    difference: Difference | None
    waits_for: Difference | None
    error: Exception | None
    served: int
    called: frozenset[str]
    state: Mapping[str, Any]


async def _execute(
    app: Application[Any],
    recording: Recording,
    inputs: Mapping[str, object],
    secrets: Mapping[str, object],
    codec: Codec,
) -> _Ended:
    """Execute the application on the outcomes of a recording, to its end or that of the record."""
    KEPT_HERE.set(MemoryRates())
    conductor = Conductor(recording, codec)
    INJECTION.set(conductor)
    present = copy.copy(app)
    present.store, present.hooks = MemoryStore(), ()
    data = recording.data
    first: dict[str, Any] = {
        name: codec.decode(json.dumps(value)) for name, value in data["first"].items()
    }
    hidden = {**data.get("secret", {}), **secrets}
    missing = {
        name: NotRecorded(name)
        for name, need in present.graph.takes.items()
        if need.required and name not in present.inputs and name not in inputs
    }
    given = {**missing, **inputs}
    start: Any = State({**first, **hidden}, secret=set(hidden)) if hidden else first
    error: Exception | None = None
    kept = conductor.kept
    if data.get("after") is not None or data.get("visits"):
        await _begin_after(kept, recording, first, hidden)
        start = State(hidden, secret=set(hidden)) if hidden else None
    async with Runtime(watch=False, debug=False) as runtime:
        # Each cached result was an outcome of its own in the recorded run.
        no_results = Results(runtime.services.clock, size=0)
        runtime.services = replace(runtime.services, results=no_results)
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                nonlocal error
                try:
                    await present.run(start, id=recording.run_id, inputs=given, runtime=runtime)
                except Exception as raised:  # noqa: BLE001 # it is compared, or raised, below
                    error = raised
                conductor.over.set()

            tasks.start_soon(run)
            await conductor.over.wait()
            kept = conductor.kept.copy()  # before it is cancelled, which ends what is under way
            tasks.cancel_scope.cancel()
    for one in missing.values():
        if one.misused is not None:
            raise one.misused
    if error is not None and not len(kept):
        raise error  # it could not begin, and says why
    read = await read_run(kept, recording.run_id)
    waits = conductor.waits_for
    return _Ended(
        data=read,
        difference=conductor.difference,
        waits_for=None if waits is None else Difference.of_waiting(waits),
        error=error,
        served=conductor.served,
        called=frozenset(conductor.called),
        state=await _last_state(kept, recording.run_id),
    )


async def _last_state(store: Store, run_id: str) -> Mapping[str, Any]:
    record = await store.load(run_id)
    assert record is not None, "it was read"
    return dict(play(record.beginning.first, await store.read(RunPath(run_id=run_id))).data)


async def _begin_after(
    store: MemoryStore, recording: Recording, first: Mapping[str, Any], hidden: Mapping[str, Any]
) -> None:
    """Let the run begin behind a step, as a fork does."""
    data, run = recording.data, HandMadeRun(path=recording.root.path)
    begun = Beginning(
        application=data["application"],
        version=data["version"],
        first=first,
        after=data.get("after"),
        visits=data.get("visits", {}),
        secret=frozenset(hidden),
    )
    await store.claim(recording.run_id, _FORK)
    store.save(Batch(run, begun=begun, holder=_FORK))
    await store.release(recording.run_id, _FORK)
