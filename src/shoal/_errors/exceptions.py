"""The exceptions that shoal raises by itself.

An exception that user code raises is never replaced: the error of a failing action reaches the
caller as it is, with a note that names the run, the step and the key. These are the others::

    ShoalError
    ├── DefinitionError      an action, graph or fan-out is wrong as written
    │   └── NotSendable          ...or a value: it can't be sent to the executor of an action
    ├── BadUse               an object was used too early, too late, or twice at once
    ├── StateError           a state was used against its declaration
    │   ├── UndeclaredRead       a field that the action does not declare in reads=
    │   ├── UndeclaredWrite      a field that the action does not declare in writes=
    │   ├── MissingField         a declared field that the state does not have (a KeyError too)
    │   ├── InvalidState         a value that does not fit the field of the application's model
    │   └── ChangedInPlace       a value that a step has changed instead of returning a new one
    ├── MissingInput         no read, input or default fills a parameter; found before any action
    ├── MissingSecret        a resumed run was not given all its secret fields; found before it runs
    ├── SecretLeaked         the text of a secret field was about to be saved or given to hooks
    ├── NoTransition         none of the edges that leave an act is true of the state
    ├── TooManySteps         a run takes more steps than allowed
    ├── BadResult            an action, reducer or grow returned an invalid value
    ├── IncompleteStream     a streaming action ended without its Result, or went on after it
    ├── BadKey               an element's key is repeated, or is neither a str nor an int
    ├── DepthExceeded        fan-outs nested deeper than allowed
    ├── StepTimeout          an action, child or fan-out took too long (a TimeoutError too)
    ├── NobodyAccepted       no child can still win a race (an ExceptionGroup too), because of...
    ├── Rejected             ...a result that was not accepted
    ├── TooFewChildren       ...or too few children to begin with
    ├── RunCancelled         a run has no result because it was cancelled
    ├── Draining             a runtime that is being drained takes no more runs
    ├── SpuriousCancel       user code raised a cancellation although nothing was cancelled
    ├── HookFailed           a guarding hook raised; the update of its event stays saved
    ├── NotData              a value can't be saved, or compared with another one after a crash
    │   └── NotEncodable         ...and this is where it stands
    ├── NotDecodable         a saved value can't be read: its type is gone, or has a newer version
    ├── UpdateTooLarge       an update is larger than the store takes
    ├── SavedError           stands in for a saved exception that can't be made again
    ├── RunClaimed           another execution of the run is at work
    ├── RunConflict          a run of that id was started with other input, or by another program
    │   └── InputChanged         ...a child's input changed after its result was reduced
    ├── UnknownRun           the store has no run of that id
    ├── UnknownQuestion      an answer fits no open question, or several
    ├── BadAnswer            an answer isn't one that its question allows (a ValueError too)
    ├── NotSteered           a run could not be paused, cancelled or changed from outside
    ├── NoApplication        a run can't be recovered: the runtime has no application of that name
    ├── RetryLater           an action asks for another attempt later (users raise it)
    ├── Poisoned             each of several crashes happened while this child was at work
    ├── WorkerDied           the worker process of an action ended before the action did
    ├── NoWorker             no worker of an executor can be started
    ├── RemoteError          stands in for an exception that a worker could not send
    ├── StoreFailed          the store failed to save, or to read what it has saved
    ├── Overloaded           refused, nothing began: too many wait, or it could only start too late
    ├── BudgetExceeded       an attempt may cost more than is left of a budget; it has not begun
    ├── RateUnavailable      the backend of a shared rate failed, or did not answer in time
    ├── NotApplied           ...and knows that it has done nothing (backends raise it)
    ├── LeaseLost            another execution has taken the run over
    └── CommitInDoubt        the store did not acknowledge a save in time

``Halting`` is no error and no ``Exception``: it ends an attempt whose question has no answer yet.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches


class ShoalError(Exception):
    """Base of every exception that shoal raises by itself."""


class DefinitionError(ShoalError):
    """An action, graph or fan-out is wrong as written. Raised where the object is made."""


class BadUse(ShoalError, RuntimeError):
    """An object was used at the wrong time: too early, too late, or twice at once."""


class StateError(ShoalError):
    """A state was used against its declaration."""


class UndeclaredRead(StateError):
    """An action read a field that it does not declare in ``reads=``.

    Not a ``KeyError``, so that ``state.get(...)`` and ``in`` can't hide it.
    """


class UndeclaredWrite(StateError):
    """An action wrote a field that it does not declare in ``writes=``."""


class MissingField(StateError, KeyError):
    """A field may be read but is not in the state."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field: str = field
        """The field that an initial state lacks; empty if a step found no such field."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the repr of the message


class InvalidState(StateError):
    """A value does not fit the field of the application's model.

    If pydantic refused the value, its own error is the ``__cause__``.
    """


class ChangedInPlace(StateError):
    """A step changed a value of the state in place. Only looked for under ``Runtime(debug=True)``.

    The state has the changed value all the same, and so do all runs that share it. Actions of
    Burr's are always looked at, and change copies.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field: str = field
        """The field that holds the value."""


class MissingInput(ShoalError):
    """An action has a parameter that no read, input or default fills.

    Raised at the start of a run, before any action; of actions that ``shoal.burr.graph`` has taken
    over, when one begins.
    """


class MissingSecret(ShoalError):
    """A run that has secret fields was resumed without all of them. Secrets are never saved.

    Raised before the run goes on, so the run stays as it is. The message says how to give them.
    """

    def __init__(self, message: str, fields: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.fields: tuple[str, ...] = tuple(fields)
        """The names of the missing fields."""


class SecretLeaked(ShoalError):
    """The text of a secret field was about to be saved or given to hooks. None of it was.

    The step that made the text fails with this error. If the initial state or the id of a run
    contains the text, nothing of the run was saved. The message names the field, and the place
    where its text was found.
    """

    def __init__(self, message: str, found_in: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.found_in: tuple[str, ...] = tuple(found_in)
        """``("state", field)`` for an initial state, ``("id",)`` for a run's id; else empty."""


class NoTransition(ShoalError):
    """None of the edges that leave an act is true of the state. The act's step is completed."""


class TooManySteps(ShoalError):
    """A run takes more steps than ``Application(max_steps=)`` allows: usually an endless loop."""


class BadResult(ShoalError):
    """An action, reducer or ``grow`` returned an invalid value."""


class IncompleteStream(ShoalError):
    """A streaming action ended without yielding a ``Result``, or yielded something after it."""


class BadKey(ShoalError):
    """The key of an element is repeated within its fan-out, or is neither a str nor an int."""


class DepthExceeded(ShoalError):
    """Fan-outs are nested deeper than the runtime allows."""


class StepTimeout(ShoalError, TimeoutError):
    """An attempt of an action, a child, or a whole fan-out took longer than its ``timeout``.

    The work was cancelled and awaited; updates applied by then stay. If an earlier attempt had
    failed, its failure is the ``__cause__``.
    """

    def __init__(self, message: str = "", waited: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        # Only if there is any, so that one which was stored before has the same digest.
        if waited:
            self._waited = waited

    @property
    def waited(self) -> Mapping[str, float]:
        """How many seconds a child has waited, by what for; empty for other timeouts.

        A limit by its name, its turn of a rate, a key, a worker, its next attempt: the longest
        comes first.
        """
        return self.__dict__.get("_waited", {})


_REASONS = 5
"""The reasons that the text of ``NobodyAccepted`` shows."""


class NobodyAccepted(ExceptionGroup[Exception], ShoalError):
    """No child can still win the race: too few are left.

    The group holds, in input order, the failures of the children and a ``Rejected`` for each result
    that was not accepted. A note on each names the action, the key and the run. The text lists the
    first of ``reasons``.
    """

    reasons: tuple[str, ...] = ()
    """For each child, in input order, why it has not won: also for those that were cancelled by
    hand, or skipped. Empty if the error was read from a store."""

    def __str__(self) -> str:
        text = super().__str__()
        if not self.reasons:
            return text
        more = len(self.reasons) - _REASONS
        shown = "; ".join(self.reasons[:_REASONS]) + (f"; and {more} more" if more > 0 else "")
        return f"{text}: {shown}"

    def derive(self, excs: Sequence[Exception], /) -> NobodyAccepted:  # pyright: ignore[reportIncompatibleMethodOverride] # there are none that are no Exception
        """Group some of the same exceptions, as ``except*`` does."""
        return NobodyAccepted(self.message, excs)


class Rejected(ShoalError):
    """The result of a child was not accepted.

    If ``accept``, ``by`` or a comparison with other results raised, that is the ``__cause__``.
    """

    def __init__(self, message: str, value: object = None) -> None:
        super().__init__(message)
        self.value: object = value
        """The result: what ``take`` selects from the child."""


class TooFewChildren(ShoalError):
    """A race has fewer children than it wants results, or was left with fewer."""


class RunCancelled(ShoalError):
    """The run has no result because it was cancelled before its end.

    The message gives the reason.
    """


class Draining(ShoalError):
    """A runtime that is being drained takes no more runs. Start the run in another process."""


class SpuriousCancel(ShoalError):
    """User code raised a cancellation (or ``GeneratorExit``) although nothing was cancelled.

    A pool that cancels a future on which the code waits does this, and so does code that cancels
    its own task. Only that child or step fails; the original exception is the ``__cause__``.
    """


class HookFailed(ShoalError):
    """A guarding hook raised, which fails the run. The update of its event is saved and stays.

    The hook's own exception is the ``__cause__``.
    """


class NotData(ShoalError):
    """A value is not data: it can't be saved, or compared with another one after a crash."""


class NotEncodable(NotData):
    """A value can't be saved because of its type or its content. Nothing of it was saved.

    The message says what to do: register its type with the codec, or keep it out of the state.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path: str = path
        """Where the value stands in the data to save, such as ``state['pages'][3].body``."""


class NotDecodable(ShoalError):
    """A saved value can't be read: its type is gone, or was saved in a newer version.

    The store keeps the value as it is; do what the message says, and it can be read again. A run
    that is resumed or looked up ends with this error if its state or a child needs the value.
    """


class UpdateTooLarge(ShoalError):
    """An update is larger than the ``max_update`` of the store. Nothing of it was saved."""


class SavedError(ShoalError):
    """Stands in for a saved exception that can't be made again.

    Its module is not imported, its class is gone or local to a function, or it was made with
    arguments that are not data. Notes and cause are those of the exception.
    """

    def __init__(self, type: str, text: str) -> None:  # noqa: A002 # as ErrorInfo has it
        super().__init__(type, text)
        self.type: str = type
        """The class of the exception: ``module:Name``."""
        self.text: str = text
        """The ``str()`` of the exception."""

    def __str__(self) -> str:
        return _named(self.type, self.text)


def _named(type: str, text: str) -> str:  # noqa: A002 # as ErrorInfo has it
    name = type.removeprefix("builtins:").replace(":", ".")
    return f"{name}: {text}" if text else name


class RunClaimed(ShoalError):
    """Another execution of the run is at work, so this one does not start. The message names it."""


class RunConflict(ShoalError):
    """The store has a run of that id which was started with other input, or by another program.

    If the initial state, the application's name or its version differ, nothing was run. If the
    program has changed so that the run can't go on with it, the run fails with this error at the
    place that changed. Its records stay as they were, so the former program can still resume it.
    The message names the difference, then and now. ``Application.fork`` starts a new run from the
    state of the old one.
    """

    def __init__(self, message: str, what: str = "") -> None:
        super().__init__(message)
        self.what: str = what
        """How the run was started differently, without advice; empty if its program differs."""


class UnknownRun(ShoalError):
    """The store has no run of that id, or no such point in its history."""

    def __init__(self, message: str, similar: str = "") -> None:
        super().__init__(message)
        self.similar: str = similar
        """The id of a run that may have been meant: one of the latest, much like the id that was
        asked for. It is no part of the message, because clients of a service may not learn it."""


class UnknownQuestion(ShoalError):
    """An answer fits no open question of the run, or several questions of that name.

    Nothing was saved and nothing was run.
    """

    def __init__(self, message: str, at: object = None, why: str = "") -> None:
        super().__init__(message)
        self.at: object = at
        """The key of the answer in ``answers=``."""
        self.why: str = why
        """The problem with the answer, in words that fit every caller."""


class BadAnswer(ShoalError, ValueError):
    """An answer isn't of the type that its question asks for: ``context.ask(answer=...)``.

    Refused where it was given, nothing was saved and nothing was run. Raised in the action that
    asks, the answer was saved, and doesn't fit the program that reads it.
    """

    def __init__(self, message: str, at: object = None, why: str = "", place: str = "") -> None:
        super().__init__(message)
        self.at: object = at
        """The key of the answer in ``answers=``; None if it was not given there."""
        self.why: str = why
        """What is wrong, in words that fit every caller, and without the answer itself."""
        self.place: str = place
        """Where in the answer: fields and indices with dots between; empty: the whole answer."""


class NotSteered(ShoalError):
    """A run could not be paused, resumed, cancelled or changed from another process.

    Nothing was changed, unless the message says that the request stays.
    """


class NoApplication(ShoalError):
    """A run can't be recovered: the runtime has no application of its name and version.

    The run stays as it is; a runtime that has the application can recover it.
    """


class InputChanged(RunConflict):
    """A child's input has changed since its result was reduced, so it can't run again.

    The effect of ``reduce`` on the state can't be undone. The message names the key.
    """


class RetryLater(ShoalError):
    """Raise this in an action to be tried again after some seconds, as when a server says so.

    It needs no ``Retry`` and uses up no attempt. It pauses the key in every ``Limits`` in force
    that has ``by=``: those of the action, the application, the runtime and all enclosing fan-outs.
    No other child with that key starts during the pause; children at work go on. With or without a
    key, the child that raised it waits and holds no slot. After 10 in a row, it fails with this
    error.

    Args:
        after: Seconds until the next try; at least 0.
    """

    def __init__(self, after: float) -> None:
        if not isinstance(after, int | float) or not 0 <= after < float("inf"):
            msg = f"RetryLater(after) takes seconds, at least 0, not {after!r}"
            raise ValueError(msg)
        super().__init__(after)
        self.after: float = after

    def __str__(self) -> str:
        return f"asked to be tried again after {self.after:g} s"


class Poisoned(ShoalError):
    """A child was at work in several executions in a row whose process died.

    It is taken for the cause, so it is not started again, and no ``Retry`` tries it again. The
    message names the child and says what to do.
    """

    def __init__(self, message: str, crashes: int = 0) -> None:
        super().__init__(message)
        self.crashes: int = crashes
        """Executions in a row that died while the child was at work. Children are counted from the
        run's first crash on, so one more execution has died before these."""


class WorkerDied(ShoalError):
    """The worker that called an action's function ended before the function did.

    A process was killed, or ended itself; a node of a cluster was lost. The function may have had
    all of its effects, or none. The action is called again at once, in another worker, up to
    ``Runtime(max_crashes=)`` deaths in a row. Then it fails with ``Poisoned``, whose ``__cause__``
    is the last death.
    """

    def __init__(self, message: str, worker: str = "", others: int = 0) -> None:
        super().__init__(message)
        self.worker: str = worker
        """The worker that died, as people find it: its process id, or its name."""
        self.others: int = others
        """How many other calls were at work in that worker. Any of them may have killed it."""


class NoWorker(ShoalError):
    """An action was to be called in a worker, and no worker could be started.

    Several workers in a row died at their start, or the system refuses to start any. Actions that
    are called later try again. (What an initializer raises is raised as it is.)
    """


class NotSendable(DefinitionError):
    """A function, or a value, can't be sent to the executor of an action.

    Functions and inputs are refused before a run starts; a field of the state, and a result, fail
    the step. The message names the action and the value, and says why and what to do.
    """


class RemoteError(ShoalError):
    """Stands in for an exception that an action raised in a worker, and that can't be sent.

    Its class is not importable here, or holds something that can't be pickled. The notes and the
    traceback of the exception are in its own notes.
    """

    def __init__(self, type: str, text: str) -> None:  # noqa: A002 # as ErrorInfo has it
        super().__init__(type, text)
        self.type: str = type
        """The class of the exception: ``module:Name``."""
        self.text: str = text
        """The ``str()`` of the exception."""

    def __str__(self) -> str:
        return _named(self.type, self.text)


class StoreFailed(ShoalError):
    """The store raised an exception when it was asked to save, or to read what it has saved.

    The execution ends at the last saved state. The store's own exception is the ``__cause__``.
    """


class BudgetExceeded(ShoalError):
    """An attempt may cost more than is left of a budget. It has not begun, and has cost nothing.

    The ``retry=`` of its action doesn't apply. Resume the run with a larger budget.
    """

    def __init__(
        self,
        message: str,
        *,
        budget: str = "",
        key: str = "",
        unit: str = "",
        amount: float = 0.0,
        spent: float = 0.0,
        aside: float = 0.0,
        cost: float = 0.0,
        by: Mapping[str, float] | None = None,
        on_empty: str = "fail",
    ) -> None:
        """Describe what doesn't fit.

        Args:
            message: The whole story.
            budget: The name of the budget, by default its unit.
            key: The key that it is counted for, as ``repr`` writes it; empty without ``by=``.
            unit: The unit.
            amount: How much there is in all.
            spent: How much of it is spent.
            aside: How much of it is set aside for attempts under way.
            cost: What the attempt may cost.
            by: What was spent, by the names of actions.
            on_empty: What the budget says is to happen.
        """
        super().__init__(message)
        self.budget: str = budget
        self.key: str = key
        self.unit: str = unit
        self.amount: float = amount
        self.spent: float = spent
        self.aside: float = aside
        self.cost: float = cost
        self.by: Mapping[str, float] = {} if by is None else by
        self.on_empty: str = on_empty


class RateUnavailable(ShoalError):
    """The backend of a shared rate failed, or did not answer, for too long.

    The work that waited for the rate has not started. The backend's exception is the ``__cause__``.
    """


class NotApplied(ShoalError):
    """The backend of a shared rate or budget knows that it has applied none of the requests.

    Backends raise it, ``BudgetBackend.spend`` for example. The parts that free units are repeated
    then. After any other exception they are not, because they may have been applied, and units
    that are returned twice would be granted twice.
    """


class Overloaded(ShoalError):
    """An attempt, or a run, was refused before it began, because it would have waited too long.

    As many runs as ``Limits(waiting=)`` allows wait for one of its limits already, or it could not
    have started in time: before the deadline of its caller, if that limit has ``waiting=``, or in a
    child before that of ``Each(timeout=)``. It used up nothing of any limit, and the ``retry`` of
    its action doesn't apply. Or as many runs as ``Runtime(waiting=)`` allows wait for their turn
    already; of the refused one nothing was saved.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after: float = retry_after
        """Seconds after which another attempt has better prospects: an estimate, from the rates of
        the limit and from how fast it has let others in of late."""


class LeaseLost(ShoalError):
    """Another execution has taken the run over. This one ends and publishes nothing more."""


class CommitInDoubt(ShoalError):
    """The store did not acknowledge a save before the commit deadline.

    The execution ends here: the state in memory did not advance and nothing was published. The next
    resume finds out from the store whether the save happened.
    """


class Halting(BaseException):
    """Ends an attempt whose question has no answer yet. Raised by ``context.ask``.

    It is no ``Exception``, so that ``except Exception`` lets it pass, as it does a cancellation.
    Put cleanup into ``finally``. An action that catches it changes nothing: the attempt counts as
    halted however it ends, and starts anew once there is an answer.
    """


# Tracebacks, ``ErrorInfo.type`` and pickles name them by ``shoal``, wherever they are defined (see
# test_errors_show_their_public_name).
for _one in [*globals().values()]:
    if isinstance(_one, type) and issubclass(_one, ShoalError | Halting):
        _one.__module__ = "shoal"

_SHOWN = 300
"""The most characters of a value in a message: about four lines of a terminal."""


class _Brief(reprlib.Repr):
    """Shortens values. Ints with more digits than Python converts are shown in hexadecimal."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        # Without reprlib's own: since Python 3.14 it shows so many digits as an address, which is
        # another one for each int of the same value.
        try:
            text = repr(x)
        except ValueError:  # more digits than sys.get_int_max_str_digits()
            text = f"{x:#x}"
        half = self.maxlong // 2
        return text if len(text) <= self.maxlong else f"{text[:half]}...{text[-half:]}"


_repr = _Brief()


def fork_advice(run_id: str, number: int | None) -> str:
    """Return the advice to fork a run from its state at update ``number``."""
    if number is None:
        return f"start a new run with fork({run_id!r}, number=...) from before this step"
    before = "its beginning" if number == 0 else "before what can't be carried over"
    return f"start a new run from {before} with fork({run_id!r}, number={number})"


def brief(value: object) -> str:
    """Return ``value`` as messages show it: on one line, shortened, even if its own repr raises.

    An error of ours is shown in full, because its message ends with what to do about it.
    """
    # The keys of children, mostly: some messages are made ready for each child.
    if type(value) is str and len(value) < _repr.maxstring // 2:
        text = repr(value)
        if len(text) <= _repr.maxstring:
            return " ".join(text.split())
    if isinstance(value, ShoalError):
        with suppress(Exception):  # a user's subclass may have a repr that raises
            return " ".join(repr(value).split())
    try:
        text = " ".join(_repr.repr(value).split())
    except Exception:  # noqa: BLE001 # reprlib goes by the class's name: "list" may be no list
        text = f"<{type(value).__name__} instance at {id(value):#x}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[3 - _SHOWN // 2 :]}"


def kind_of(value: object) -> str:
    """Return the type of ``value`` with its article, as in "a list", "an int", "None"."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` with the known word most like ``word``; "" if none is."""
    found = most_like(word, known)
    return f"; did you mean {found!r}?" if found else ""


def most_like(word: str, known: Iterable[str]) -> str:
    """Return the known word most like ``word``; "" if none is."""
    return next(iter(get_close_matches(word, known, n=1)), "")


def note(error: BaseException, text: str) -> None:
    """Add a note to ``error``, once. A frozen exception takes none."""
    with suppress(Exception):  # user code may run here; the error is clear enough without the note
        if text not in getattr(error, "__notes__", ()):
            error.add_note(text)
