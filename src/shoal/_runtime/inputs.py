"""What whoever runs an application gives, checked first. Imports runtimes and starts.

Invariants:
- What can be checked is, before the first action starts, and before anything is saved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypedDict, cast

from shoal._engine.config import Halts
from shoal._engine.execution import Execution
from shoal._engine.fanout.recorded import note_similar
from shoal._engine.questions import Answers
from shoal._errors.exceptions import (
    BadUse,
    DefinitionError,
    MissingField,
    MissingInput,
    did_you_mean,
    kind_of,
)
from shoal._events.identity import RunPath, new_run_id
from shoal._graph.graph import Graph
from shoal._state.secrets import Secret, boxed, secrets_in
from shoal._state.state import State
from shoal.stores._protocol import Beginning, NullStore, RunRecord, Store

from .runtime import Runtime
from .start import First, Start, refuse_conflict, refuse_in_id


class AskedFor(TypedDict):
    """What is asked for that has to do with halting."""

    answers: Answers | None
    halts: Halts | None


class Given:
    """The part of an application that checks what its runs are given."""

    name: str
    version: str
    graph: Graph
    store: Store | None
    inputs: Mapping[str, object]
    secret: frozenset[str]

    def _refuse(self, why: str) -> Any:
        msg = f"application {self.name!r}: {why}"
        raise DefinitionError(msg)

    def _check(
        self,
        state: object,
        id: str | None,
        inputs: Mapping[str, object] | None,
        runtime: Runtime | None,
        where: str,
    ) -> tuple[Start | First, Mapping[str, Any], RunPath]:
        """Check what ``run`` or ``open`` was given.

        Returns what the run starts from, its inputs, and who it is.
        """
        store = self._check_place(id, runtime, where)
        fields = self._declared(state, where)
        self._refuse_in_id(id, fields)
        data = self._checked(fields)
        given = None if state is None else fields

        async def known_or_new(execution: Execution, known: RunRecord | None) -> Start:
            """Leave to the store what is not given, if it has the run."""
            if known is not None:
                return self._again(known, given, data)
            try:
                return self._beginning(data, id)
            except MissingField as error:
                await note_similar(error, execution, str(id))
                raise

        if id is None:
            first = self._beginning(data)
        elif isinstance(store, NullStore):
            first = self._beginning(data, id, is_kept=False)
        else:
            first = known_or_new
        return first, *self._check_inputs(id, inputs, runtime, where)

    def _check_halting(
        self,
        where: str,
        id: str | None,
        runtime: Runtime | None,
        *,
        answers: object,
        halt_before: object,
        halt_after: object,
    ) -> AskedFor:
        """Check what ``run`` or ``open`` was given that has to do with halting."""
        if answers is not None and not isinstance(answers, Mapping):
            msg = (
                f"{where}(answers=...) takes a mapping, {{(run_id, name): value}} or, where one "
                f"question has the name, {{name: value}}; not {kind_of(answers)}"
            )
            raise TypeError(msg)
        if answers:
            if id is None:
                msg = f"{where}(answers=...) takes id= as well: whose questions are answered?"
                raise BadUse(msg)
            self._require_store(id, runtime, where, "answers=...")
        who = f"application {self.name!r}: {where}"
        halts = Halts(
            self.graph.names(halt_before, f"{who}(halt_before=...)"),
            self.graph.names(halt_after, f"{who}(halt_after=...)"),
        )
        return {
            "answers": cast("Answers | None", answers),
            "halts": halts if halts.before or halts.after else None,
        }

    def _check_place(self, id: object, runtime: object, where: str) -> Store:
        """Check who the run is to be and where it is to run; return the store that keeps it."""
        if runtime is not None and not isinstance(runtime, Runtime):
            msg = f"{where}(runtime=...) takes an open Runtime, not {runtime!r}"
            raise TypeError(msg)
        if id is not None and not isinstance(id, str):
            msg = f"{where}(id=...) takes a string, not {id!r}"
            raise TypeError(msg)
        if id == "":
            msg = f"{where}(id=...) takes a name of at least one character, or None for a random id"
            raise ValueError(msg)
        if self.store is not None:
            return self.store
        return NullStore() if runtime is None else runtime.store

    def _refuse_in_id(self, id: str | None, state: object) -> None:
        """Refuse an id that holds the text of a secret field.

        Raises:
            SecretLeaked: It does.
        """
        if id is not None and isinstance(state, Mapping):
            fields = boxed(cast("Mapping[str, object]", state), self.secret)
            refuse_in_id(f"application {self.name!r}", id, fields)

    def _require_store(self, id: object, runtime: object, where: str, given: str = "") -> None:
        """Refuse what only a store makes possible: a method, or what it was ``given``."""
        if isinstance(self._check_place(id, runtime, where), NullStore):
            msg = (
                f"application {self.name!r}: {where}({given}) needs a store that has the run: "
                f"Application(..., store=...) or Runtime(store=...)"
            )
            raise BadUse(msg)

    def _declared(self, state: object, where: str) -> Mapping[str, object]:
        """Take what a run is given as its state; what is declared secret is, from here on."""
        schema = self.graph.schema
        if schema is not None:
            fields = schema.read({} if state is None else state)
        else:
            fields = fields_of(state, "state", where)
        return boxed(fields, self.secret)

    def _beginning(
        self, data: Mapping[str, object], id: str | None = None, *, is_kept: bool = True
    ) -> Start:
        """Say what a new run is to start from.

        Args:
            data: Its fields.
            id: Its id, if it was asked for by one: then a run of that id may have been meant.
            is_kept: Whether there is a store, which has no such run.

        Raises:
            MissingField: A field is needed and isn't there.
        """
        field, missing = self._missing_field(data)
        if missing:
            unknown = ""
            if id is not None:
                where = "the store has no run" if is_kept else "there is no store to have a run"
                unknown = f"{where} {id!r}, and a new one can't begin: "
            msg = f"application {self.name!r}: {unknown}{missing}"
            raise MissingField(msg, field)
        return self._start(data)

    def _start(self, data: Mapping[str, object]) -> Start:
        beginning = Beginning(application=self.name, version=self.version, first=data)
        return Start.of(beginning, self.secret)

    def _again(
        self, known: RunRecord, given: Mapping[str, object] | None, data: Mapping[str, object]
    ) -> Start:
        """Say what a run is to start from that is known; None: what is given was left out."""
        secrets = secrets_in(boxed(given or {}, known.beginning.secret))
        is_left_out = given is None or (bool(given) and len(secrets) == len(given))
        return self._same(known, secrets) if is_left_out else self._start(data)

    def _refuse_other(self, run_id: str, state: object, known: RunRecord) -> None:
        """Refuse to take a run that goes on for the one that is asked for, if it is another one.

        Its version makes no difference: nothing of it is executed here.

        Raises:
            RunConflict: It is another application's, or was started with another state.
            NotData: Whether it was can't be told.
        """
        fields = self._declared(state, "start")
        given = None if state is None else fields
        wanted = self._again(known, given, self._checked(fields))
        begun = replace(known.beginning, version=self.version)
        refuse_conflict(run_id, begun, wanted.declaring(begun.secret))

    def _same(self, known: RunRecord, secrets: Mapping[str, Secret]) -> Start:
        """Say what a run is to start from that the store has: as this one, with its secrets."""
        beginning = replace(known.beginning, application=self.name, version=self.version)
        start = Start.of(beginning, self.secret)
        return Start(beginning, {**start.secrets, **secrets})

    def _checked(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Hold the fields of a state to the application's model, if there is one."""
        schema = self.graph.schema
        return data if schema is None else schema.initial(data)

    def _check_inputs(
        self,
        id: str | None,
        inputs: Mapping[str, object] | None,
        runtime: Runtime | None,
        where: str,
    ) -> tuple[Mapping[str, Any], RunPath]:
        """Check the inputs of a run, and collect them from everywhere; make its identity."""
        given = fields_of(inputs, "inputs", where)
        unknown = self.graph.unknown_input(given)
        if unknown:
            msg = f"application {self.name!r}: {where}(inputs=...): {unknown}"
            raise DefinitionError(msg)
        given = {**({} if runtime is None else runtime.inputs), **self.inputs, **given}
        lacking = self._missing_inputs(given)
        if lacking:
            msg = (
                f"application {self.name!r} lacks the input {lacking}; give it to "
                f"{where}(inputs=...), or, if it is a field of the state, name it in the action's "
                f"reads=[...]"
            )
            raise MissingInput(msg)
        return given, RunPath(run_id=id if id is not None else new_run_id(), act=self.name)

    def _missing_field(self, fields: Collection[str]) -> tuple[str, str]:
        """Name the field that must come from outside and doesn't, and say so; empty: none."""
        for field, who in self.graph.missing(fields).items():
            return field, (
                f"{who} reads field {field!r}, which the state does not "
                f"have (it has: {', '.join(sorted(fields)) or 'none'}) and no earlier action "
                f"writes; pass it to run(), or write it in an earlier action"
                f"{did_you_mean(field, self.graph.writes - {field})}"
            )
        return "", ""

    def _unknown_secret(self) -> str:
        """Say which field that is declared secret nobody reads; nothing if none."""
        schema = self.graph.schema
        known = self.graph.reads if schema is None else schema.fields
        for name in sorted(self.secret.difference(known)):
            found = ", ".join(sorted(known)) or "none"
            meant = did_you_mean(name, known)
            return (
                f"no action reads a field {name!r} of the initial state (there are: {found}){meant}"
            )
        return ""

    def _missing_inputs(self, given: Collection[str]) -> str:
        """Say which inputs are needed and not given; nothing if none."""
        return ", ".join(
            f"{name!r} (action {need.by!r})"
            for name, need in self.graph.takes.items()
            if need.required and name not in given
        )


def fields_of(given: object, parameter: str, where: str) -> dict[str, Any]:
    """Check what a user gave as ``state`` or ``inputs``."""
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
