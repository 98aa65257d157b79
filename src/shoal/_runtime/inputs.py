"""What a run is given: checked, and made into a request.

Invariants:
- Everything that can be checked is checked before the first action starts, and before anything is
  saved.
- What a caller leaves out is what the store has, if the run is known there; otherwise the run is
  new, and nothing may be left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast, final

from anyio import NoEventLoopError, get_cancelled_exc_class

from shoal._engine.config import Halts
from shoal._engine.execution import Execution
from shoal._engine.fanout.read_runs import (
    note_similar,
    recorded_beginning,
    recorded_history,
    unknown_run,
)
from shoal._engine.fanout.takeup import has_folded, refuse_fork
from shoal._engine.spawning import around
from shoal._errors.exceptions import BadUse, DefinitionError, MissingField, MissingInput, kind_of
from shoal._events.identity import RunPath, new_run_id
from shoal._graph.act import Act
from shoal._graph.reach import Called, refuse_unsendable, sent_by
from shoal._limits.flows import Priority, check_priority
from shoal._state.secrets import Secret, boxed, secrets_in
from shoal._state.state import State
from shoal.executors._named import Place
from shoal.stores._protocol import Beginning, NullStore, RunRecord, Store

from .answers import Answers
from .definition import AppDefinition, missing_field, missing_inputs, unread_field
from .reopening import Reopening
from .runtime import Runtime
from .start import (
    OrphanStart,
    RunRequest,
    RunStart,
    StartResolver,
    only_secrets,
    refuse_conflict,
    refuse_in_id,
    refuse_missing,
    refuse_other_owner,
)


class Call(NamedTuple):
    """Which method was called for which run: what each check needs for its message."""

    where: str
    """The method's name."""
    id: str | None
    runtime: Runtime | None


@final
class Asked(NamedTuple):
    """What a caller asks for besides the state and the inputs of a run; see ``Application.run``."""

    answers: object
    halt_before: Iterable[Act | str]
    halt_after: Iterable[Act | str]
    priority: Priority | None
    owner: str | None


@final
class StartCheck:
    """Checks what the runs of an application are given, and makes their requests of it."""

    __slots__ = ("_definition", "_sent")

    def __init__(self, definition: AppDefinition) -> None:
        self._definition = definition
        # The actions that executors may refuse, under the executor that was inherited last: nearly
        # always the same for all runs, each of which would walk the graph to find that there are
        # none.
        self._sent: tuple[Place | None, Sequence[Called]] | None = None

    # -- requests -------------------------------------------------------------------------------

    def run_request(
        self, call: Call, state: object, inputs: Mapping[str, object] | None, asked: Asked
    ) -> RunRequest:
        """Request a run that is new, or goes on if the store has it: ``run``, ``start``, ``open``.

        Raises:
            Exception: As ``Application.run`` before any action starts.
        """
        answers, halt_before, halt_after, priority, owner = asked
        check_owner(owner, call.where)
        if priority is not None:
            check_priority(priority, f"{call.where}(priority=...)", BadUse)
        first = self._first(call, state, owner, priority)
        given, path = self._check_inputs(call, inputs)
        unread = unread_field(self._definition.graph, given, state)
        if unread:
            msg = f"{self._definition}: {unread}"
            raise DefinitionError(msg)
        answered = self._check_answers(call, answers)
        halts = self._check_halts(call, halt_before, halt_after)
        return RunRequest(first, given, path, answered, halts, priority=priority)

    def fork_request(
        self,
        call: Call,
        run_id: str,
        update: Mapping[str, object] | None,
        inputs: Mapping[str, object] | None,
        number: int | None,
    ) -> RunRequest:
        """Request a new run that begins where the run ``run_id`` once stood.

        Raises:
            Exception: As ``Application.fork`` before the store is asked.
        """
        definition = self._definition
        self.require_store(call)
        changed = fields_of(update, "update", call.where)
        self.refuse_in_id(call.id, changed)
        given, path = self._check_inputs(call, inputs)

        async def first(execution: Execution, _known: RunRecord | None) -> RunStart:
            other = RunPath(run_id=run_id, act=definition.name)
            begun = await recorded_beginning(execution, other)
            refuse_missing(run_id, begun.secret, changed)
            played = await recorded_history(execution, other, begun, upto=number)
            if number is None and has_folded(played):
                # Elements that `reduce` has taken can't be taken again, so that step begins anew.
                upto = played.began.number
                played = await recorded_history(execution, other, begun, upto=upto)
            refuse_fork(run_id, definition.graph, played)
            secret = begun.secret | definition.secret
            beginning = Beginning(
                application=definition.name,
                version=definition.version,
                first=self._checked(boxed({**played.data, **changed}, secret)),
                after=played.began.step,
                visits=played.began.visits,
                forked_from=(run_id, played.number),
                spawned_by=around().spawned_by,
                owner=begun.owner,
                priority=begun.priority,
            )
            return RunStart.of(beginning, secret)

        return RunRequest(first, given, path)

    def reopen_request(
        self,
        call: Call,
        run_id: str,
        state: Mapping[str, object] | None,
        inputs: Mapping[str, object] | None,
        reopening: Reopening,
    ) -> RunRequest:
        """Request that the known run ``run_id`` goes back to a step that it has completed.

        Raises:
            Exception: As ``Application.reopen`` before the store is asked.
        """
        if reopening.step is not None and not isinstance(reopening.step, str):
            msg = f"{call.where}(step=...) takes the name of a fan-out, not {reopening.step!r}"
            raise BadUse(msg)
        self.require_store(call)
        secrets = fields_of(state, "state", call.where)
        given, path = self._check_inputs(call, inputs)

        async def first(execution: Execution, known: RunRecord | None) -> RunStart:
            if known is None:
                raise await unknown_run(execution, run_id)
            return self._same(known, only_secrets(secrets, known.beginning, call.where))

        return RunRequest(first, given, path, reopening=reopening)

    def orphan_request(
        self,
        call: Call,
        run_id: str,
        state: Mapping[str, object] | None,
        inputs: Mapping[str, object] | None,
        priority: Priority | None,
    ) -> tuple[OrphanStart, RunRequest]:
        """Request that the run ``run_id`` is resumed, if nobody executes it and it has no end.

        Raises:
            Exception: As ``Application.recover`` before the store is asked.
        """
        self.require_store(call)
        secrets = fields_of(state, "state", call.where)
        given, path = self._check_inputs(call, inputs)
        orphan = OrphanStart(run_id, secrets, self._same)
        request = RunRequest(orphan.resolve, given, path, priority=priority, is_recovered=True)
        return orphan, request

    # -- checks that other doors to an application need as well ---------------------------------

    def refuse_start(self, where: str, state: object) -> None:
        """Refuse the ``state`` that a new run would be given by ``where``.

        Raises:
            Exception: As ``Application.run`` because of the state, before any action starts.
        """
        self._first(Call(where, None, None), state, None, None)

    def require_store(self, call: Call, given: str = "") -> None:
        """Refuse a method, or what it was ``given``, that needs a store, where there is none.

        Raises:
            BadUse: There is no store.
        """
        if isinstance(self._check_place(call), NullStore):
            msg = (
                f"{self._definition}: {call.where}({given}) needs a store that has the run: "
                f"Application(..., store=...) or Runtime(store=...)"
            )
            raise BadUse(msg)

    def refuse_in_id(self, id: str | None, state: object) -> None:
        """Refuse an id that holds the text of a secret field of ``state``.

        Raises:
            SecretLeaked: The id holds the text of a secret.
        """
        if id is not None and isinstance(state, Mapping):
            fields = boxed(cast("Mapping[str, object]", state), self._definition.secret)
            refuse_in_id(self._definition, id, fields)

    def refuse_other(self, run_id: str, state: object, known: RunRecord) -> None:
        """Refuse to take the known run ``run_id`` for the one that a caller asks to start.

        The versions may differ, because nothing of the run is executed here.

        Raises:
            RunConflict: The run is another application's, or was started with another state.
            NotData: Whether it was started with this state can't be decided.
        """
        fields = self._declared(state, "start")
        given = None if state is None else fields
        wanted = self._again(known, given, self._checked(fields))
        begun = replace(known.beginning, version=self._definition.version)
        refuse_conflict(run_id, begun, wanted.declaring(begun.secret))

    # -- the place ------------------------------------------------------------------------------

    def _check_place(self, call: Call) -> Store:
        """Check the run's id and runtime, and return the store that the run is saved in."""
        where, id, runtime = call
        if runtime is not None and not isinstance(runtime, Runtime):
            msg = f"{where}(runtime=...) takes an open Runtime, not {runtime!r}"
            raise TypeError(msg)
        if id is not None and not isinstance(id, str):
            msg = f"{where}(id=...) takes a string, not {id!r}"
            raise TypeError(msg)
        if id == "":
            msg = f"{where}(id=...) takes a name of at least one character, or None for a random id"
            raise ValueError(msg)
        if self._definition.store is not None:
            return self._definition.store
        return NullStore() if runtime is None else runtime.store

    # -- the state ------------------------------------------------------------------------------

    def _first(
        self, call: Call, state: object, owner: str | None, priority: Priority | None
    ) -> RunStart | StartResolver:
        """Check the state that a run is given; the store decides what is left out of it."""
        store = self._check_place(call)
        id = call.id
        fields = self._declared(state, call.where)
        self.refuse_in_id(id, fields)
        data = self._checked(fields)
        given = None if state is None else fields

        async def known_or_new(execution: Execution, known: RunRecord | None) -> RunStart:
            if known is not None:
                refuse_other_owner(str(id), known.beginning, owner)
                return self._again(known, given, data)
            try:
                return self._beginning(data, id, owner=owner, priority=priority)
            except MissingField as error:
                await note_similar(error, execution, str(id))
                raise

        if id is None:
            return self._beginning(data, owner=owner, priority=priority)
        if isinstance(store, NullStore):
            return self._beginning(data, id, has_store=False, owner=owner, priority=priority)
        return known_or_new

    def _declared(self, state: object, where: str) -> Mapping[str, object]:
        """Return the fields of ``state``; those that the application declares secret in boxes."""
        schema = self._definition.graph.schema
        if schema is not None:
            fields = schema.read({} if state is None else state)
        else:
            fields = fields_of(state, "state", where)
        return boxed(fields, self._definition.secret)

    def _checked(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check the fields against the application's model, if there is one, and complete them."""
        schema = self._definition.graph.schema
        return data if schema is None else schema.initial(data)

    def _beginning(
        self,
        data: Mapping[str, object],
        id: str | None = None,
        *,
        has_store: bool = True,
        owner: str | None = None,
        priority: Priority | None = None,
    ) -> RunStart:
        """Return the start of a new run.

        Args:
            data: Its fields.
            id: Its id, if the caller gave one. A known run of that id may have been meant, so the
                error says that there is none.
            has_store: Whether there is a store, which has no run of that id.
            owner: Whose it is; None: of the owner of the run that starts it, if one does.
            priority: How urgent it is; None: as its application says.

        Raises:
            MissingField: A field is needed and isn't there.
        """
        field, missing = missing_field(self._definition.graph, data)
        if missing:
            unknown = ""
            if id is not None:
                where = "the store has no run" if has_store else "there is no store to have a run"
                unknown = f"{where} {id!r}, and a new one can't begin: "
            msg = f"{self._definition}: {unknown}{missing}"
            raise MissingField(msg, field)
        return self._start(data, owner, priority)

    def _start(
        self, data: Mapping[str, object], owner: str | None = None, priority: Priority | None = None
    ) -> RunStart:
        definition = self._definition
        outer = around()
        beginning = Beginning(
            application=definition.name,
            version=definition.version,
            first=data,
            spawned_by=outer.spawned_by,
            owner=outer.owner if owner is None else owner,
            priority=priority or definition.priority or outer.priority,
        )
        return RunStart.of(beginning, definition.secret)

    def _again(
        self, known: RunRecord, given: Mapping[str, object] | None, data: Mapping[str, object]
    ) -> RunStart:
        """Return the start of a known run as its caller has given it, or left it to the store.

        Args:
            known: The store's record of the run.
            given: The fields as the caller gave them; None: the state was left out.
            data: The same, completed by the model.
        """
        secrets = secrets_in(boxed(given or {}, known.beginning.secret))
        # Secrets alone count as left out: they are saved nowhere, so a resume gives them again.
        is_left_out = given is None or (bool(given) and len(secrets) == len(given))
        return self._same(known, secrets) if is_left_out else self._start(data)

    def _same(self, known: RunRecord, secrets: Mapping[str, Secret]) -> RunStart:
        """Return the start that the store has of a run, as this application's, with ``secrets``."""
        definition = self._definition
        beginning = replace(
            known.beginning, application=definition.name, version=definition.version
        )
        start = RunStart.of(beginning, definition.secret)
        return RunStart(beginning, {**start.secrets, **secrets})

    # -- inputs, answers, halts -----------------------------------------------------------------

    def _check_inputs(
        self, call: Call, inputs: Mapping[str, object] | None
    ) -> tuple[Mapping[str, Any], RunPath]:
        """Check a run's inputs and collect them from everywhere; return them and its identity.

        The run's own win over the application's, and those over the runtime's.
        """
        where, id, runtime = call
        definition = self._definition
        given = fields_of(inputs, "inputs", where)
        unknown = definition.graph.unknown_input(given)
        if unknown:
            msg = f"{definition}: {where}(inputs=...): {unknown}"
            raise DefinitionError(msg)
        given = {**({} if runtime is None else runtime.inputs), **definition.inputs, **given}
        lacking = missing_inputs(definition.graph, given)
        if lacking:
            msg = (
                f"{definition} lacks the input {lacking}; give it to "
                f"{where}(inputs=...), or, if it is a field of the state, name it in the action's "
                f"reads=[...]"
            )
            raise MissingInput(msg)
        inherited = definition.executor
        if inherited is None and runtime is not None:
            inherited = runtime.executor
        if self._sent is None or self._sent[0] is not inherited:
            self._sent = inherited, sent_by(definition, definition.graph, inherited)
        if self._sent[1]:
            refuse_unsendable(definition, self._sent[1], given)
        return given, RunPath(run_id=id if id is not None else new_run_id(), act=definition.name)

    def _check_answers(self, call: Call, answers: object) -> Answers | None:
        if answers is not None and not isinstance(answers, Mapping):
            msg = (
                f"{call.where}(answers=...) takes a mapping, {{(run_id, name): value}} or, where "
                f"one question has the name, {{name: value}}; not {kind_of(answers)}"
            )
            raise TypeError(msg)
        if answers:
            if call.id is None:
                msg = f"{call.where}(answers=...) takes id= as well: which run has asked?"
                raise BadUse(msg)
            self.require_store(call, "answers=...")
        return cast("Answers | None", answers)

    def _check_halts(
        self, call: Call, before: Iterable[Act | str], after: Iterable[Act | str]
    ) -> Halts | None:
        # The defaults, first, because most runs halt nowhere.
        if isinstance(before, tuple) and isinstance(after, tuple) and not (before or after):
            return None
        graph, subject = self._definition.graph, f"{self._definition}: {call.where}"
        halts = Halts(
            graph.names(before, f"{subject}(halt_before=...)"),
            graph.names(after, f"{subject}(halt_after=...)"),
        )
        return halts if halts.before or halts.after else None


def fields_of(given: object, parameter: str, where: str) -> dict[str, Any]:
    """Return the fields that a user gave as ``state`` or ``inputs``; none if it was left out.

    Raises:
        TypeError: It is no mapping.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        msg = (
            f"{where}() takes {parameter} as a mapping of names to values, "
            f"not {kind_of(given)}; to give an instance of a model, declare it: "
            f"Application(..., state=Model)"
        )
        raise TypeError(msg)
    return dict(State(cast("Mapping[str, object]", given))._data)


def check_owner(owner: object, where: str) -> None:
    """Refuse an owner that is no name.

    Raises:
        TypeError: It is no string.
        ValueError: It is an empty one.
    """
    if owner is not None and not isinstance(owner, str):
        msg = f"{where}(owner=...) takes a string, not {kind_of(owner)}"
        raise TypeError(msg)
    if owner == "":
        msg = f"{where}(owner=...) takes a name of at least one character, or None for nobody"
        raise ValueError(msg)


def refuse_in_a_loop(application: str) -> None:
    """Refuse ``run_sync`` where an event loop runs already.

    Raises:
        BadUse: One runs in this thread.
    """
    try:
        get_cancelled_exc_class()
    except NoEventLoopError:
        return
    msg = (
        f"application {application!r}: run_sync() is called where an event loop is already "
        f"running, which it would block: await app.run(...) instead"
    )
    raise BadUse(msg)
