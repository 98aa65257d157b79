"""The exceptions that shoal raises by itself. Imports nothing of ours.

An exception that user code raises is never replaced: a failing action's own reaches the caller,
with a note that says where it happened. These are the others::

    ShoalError
    ├── DefinitionError      an action, graph or fan-out is wrong as written
    ├── BadUse               something was used when it can't be: too early, too late, twice at once
    ├── StateError           a state was used against its declaration
    │   ├── UndeclaredRead       a field that the action does not declare in reads=
    │   ├── UndeclaredWrite      a field that the action does not declare in writes=
    │   ├── MissingField         a declared field that the state does not have (a KeyError too)
    │   └── InvalidState         a value that does not fit the field of the application's model
    ├── MissingInput         an action's parameter that nobody gave, found before any action starts
    ├── MissingSecret        a secret field of a run was not given again, found before it goes on
    ├── SecretLeaked         something that would be kept or told holds what a secret field has
    ├── NoTransition         none of the edges that leave an act is true of the state
    ├── TooManySteps         a run takes more steps than allowed
    ├── BadResult            an action, reducer or grow returned what it must not
    ├── IncompleteStream     a streaming action ended without its Result, or went on after it
    ├── BadKey               an element's key is repeated, or is neither a str nor an int
    ├── DepthExceeded        fan-outs nested deeper than allowed
    ├── StepTimeout          an action, child or fan-out took too long (a TimeoutError too)
    ├── NobodyAccepted       a race nobody can win any more (an ExceptionGroup too), because of...
    ├── Rejected             ...a result that was not accepted
    ├── TooFewChildren       ...or too few children to begin with
    ├── RunCancelled         a run has no result, for it was cancelled
    ├── Draining             a runtime that is being drained takes no more runs
    ├── SpuriousCancel       user code raised a cancellation though nobody had cancelled it
    ├── HookFailed           a guarding hook raised; the update it was told of stays
    ├── NotData              a value that is no data can't be kept, or told from another one
    │   └── NotEncodable         ...and this is where in it
    ├── NotDecodable         what was saved can't be read: a type is gone, or has a newer version
    ├── UpdateTooLarge       an update is larger than the store takes
    ├── SavedError           stands in for an exception that was saved and can't be made again
    ├── RunClaimed           another execution of the run goes on
    ├── RunConflict          a run of that id was started with something else, or by another program
    │   └── InputChanged         ...a child's input changed after its result was reduced
    ├── UnknownRun           the store has no run of that id
    ├── UnknownQuestion      an answer to what nobody has asked, or to one of several questions
    ├── NoApplication        a run can't be recovered: the runtime has no application of that name
    ├── RetryLater           an action asks to be tried again, later (users raise it)
    ├── Poisoned             a child was at work whenever a process died, so it isn't started again
    ├── StoreFailed          the store could not keep a save, or not say what it has kept
    ├── RateUnavailable      what keeps a rate that processes share failed, or didn't answer
    ├── LeaseLost            another execution has taken the run over
    └── CommitInDoubt        the store did not acknowledge a save in time

And one that is no error, and no ``Exception``: ``Halting``, which ends an attempt that waits for an
answer.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches


class ShoalError(Exception):
    """Base of every exception that shoal raises by itself."""


class DefinitionError(ShoalError):
    """An action, graph or fan-out is wrong as written. Raised where it is built."""


class BadUse(ShoalError, RuntimeError):
    """Something was used when it can't be: too early, too late, or twice at once."""


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
        """Say which one it is."""
        super().__init__(message)
        self.field: str = field
        """The field that an initial state lacks; empty where a step found no field."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the repr of the message


class InvalidState(StateError):
    """A value does not fit the field of the application's model.

    pydantic's own error, if it was pydantic that refused, is the ``__cause__``.
    """


class MissingInput(ShoalError):
    """An action has a parameter that no read, input or default fills.

    Raised at the start of a run, before any action.
    """


class MissingSecret(ShoalError):
    """A run was started with secret fields, which are saved nowhere, and not all were given again.

    Raised before the run goes on, which is left as it is. The message says how to give them.
    """

    def __init__(self, message: str, fields: Iterable[str] = ()) -> None:
        """Say which ones they are."""
        super().__init__(message)
        self.fields: tuple[str, ...] = tuple(fields)
        """The names of those that are missing."""


class SecretLeaked(ShoalError):
    """What would have been kept or told to hooks holds what a secret field has. None of it was.

    That is a failure of the step that made it. Where the initial state or the id of a run holds it,
    nothing of the run was saved. The message names the field, and where its text was found.
    """

    def __init__(self, message: str, found_in: Iterable[str] = ()) -> None:
        """Say where it was found."""
        super().__init__(message)
        self.found_in: tuple[str, ...] = tuple(found_in)
        """``("state", field)`` of an initial state, ``("id",)`` of a run's id; else empty."""


class NoTransition(ShoalError):
    """None of the edges that leave an act is true of the state. That act's step is completed."""


class TooManySteps(ShoalError):
    """A run takes more steps than ``Application(max_steps=)`` allows: an endless loop, mostly."""


class BadResult(ShoalError):
    """An action, reducer or ``grow`` returned something other than it must."""


class IncompleteStream(ShoalError):
    """A streaming action ended without yielding a ``Result``, or yielded something after it."""


class BadKey(ShoalError):
    """The key of an element is repeated within its fan-out, or is neither a str nor an int."""


class DepthExceeded(ShoalError):
    """Fan-outs are nested deeper than the runtime allows."""


class StepTimeout(ShoalError, TimeoutError):
    """An attempt of an action, a child, or a whole fan-out took longer than its ``timeout``.

    What it had done by then was cancelled and awaited; updates applied so far stay. Where it had
    failed before and was being tried again, that failure is the ``__cause__``.
    """


class NobodyAccepted(ExceptionGroup[Exception], ShoalError):
    """A race nobody can win any more: too few of its children are left.

    It groups, in input order, what they failed with and a ``Rejected`` for each result that was not
    accepted; each with a note that names action, key and run.
    """

    def derive(self, excs: Sequence[Exception], /) -> NobodyAccepted:  # pyright: ignore[reportIncompatibleMethodOverride] # there are none that are no Exception
        """Group some of the same exceptions, as ``except*`` does."""
        return NobodyAccepted(self.message, excs)


class Rejected(ShoalError):
    """The result of a child was not accepted. What ``accept`` or ``by`` raised is the cause.

    So is what comparing it to others raised.
    """

    def __init__(self, message: str, value: object = None) -> None:
        """Say which one it was."""
        super().__init__(message)
        self.value: object = value
        """The result: what ``take`` names of the child."""


class TooFewChildren(ShoalError):
    """A race has fewer children than it wants results, or was left with fewer."""


class RunCancelled(ShoalError):
    """A run that was asked for its result has none: it was cancelled before its end.

    The message says for which reason.
    """


class Draining(ShoalError):
    """A runtime that is being drained takes no more runs: another process does."""


class SpuriousCancel(ShoalError):
    """User code raised a cancellation (or ``GeneratorExit``) though nobody had cancelled it.

    A pool that cancels a future one waits for does this, and so does code that cancels the task it
    runs in. It is a failure of that child or step alone; the original is the ``__cause__``.
    """


class HookFailed(ShoalError):
    """A guarding hook raised, which fails the run. The update it was told of is saved and stays.

    The hook's own exception is the ``__cause__``.
    """


class NotData(ShoalError):
    """A value is no data: it can't be kept, nor be told from another one after a crash."""


class NotEncodable(NotData):
    """A value can't be saved, because of what it is or holds. Nothing of it was.

    The message says what to do: register its type with the codec, or keep it out of the state.
    """

    def __init__(self, message: str, path: str = "") -> None:
        """Say what it is, and where."""
        super().__init__(message)
        self.path: str = path
        """Where it is in what was to be saved, like ``state['pages'][3].body``."""


class NotDecodable(ShoalError):
    """What was saved can't be read back: it names a type that is gone, or a newer version of one.

    The store keeps it as it is. The message says what to do; then it can be read. A run that is
    resumed, or looked up, ends with this error where its state or a child needs such a value.
    """


class UpdateTooLarge(ShoalError):
    """An update is larger than the ``max_update`` of the store. Nothing of it was saved."""


class SavedError(ShoalError):
    """Stands in for an exception that was saved, and that can't be made again as what it was.

    Nothing has imported its module, its class is gone or local to a function, or it was made with
    arguments that are no data. Notes and cause are those of the exception.
    """

    def __init__(self, type: str, text: str) -> None:  # noqa: A002 # as ErrorInfo has it
        """Say what it was."""
        super().__init__(type, text)
        self.type: str = type
        """Where its class was defined: ``module:Name``."""
        self.text: str = text
        """What ``str()`` of it was."""

    def __str__(self) -> str:
        name = self.type.removeprefix("builtins:").replace(":", ".")
        return f"{name}: {self.text}" if self.text else name


class RunClaimed(ShoalError):
    """Another execution of the run goes on, so this one doesn't begin. The message says whose."""


class RunConflict(ShoalError):
    """The store has a run of that id, which was started with something else, or by another program.

    Where the initial state, the application's name or its version differ, nothing was run. Where
    the program has changed in a way that it can't go on with, the run fails with this when it comes
    to that place; what was recorded stays as it was, so the former program can still go on with it.
    The message names what differs, then and now. ``Application.fork`` starts a new run from the
    state of that one.
    """

    def __init__(self, message: str, what: str = "") -> None:
        """Say what differs."""
        super().__init__(message)
        self.what: str = what
        """What differs in how it was started, without advice; empty where the program differs."""


class UnknownRun(ShoalError):
    """The store has no run of that id, or no such moment of it."""


class UnknownQuestion(ShoalError):
    """An answer was given to no open question of the run, or to one of several of that name.

    Nothing was saved and nothing has run.
    """

    def __init__(self, message: str, at: object = None, why: str = "") -> None:
        """Say which answer it was."""
        super().__init__(message)
        self.at: object = at
        """What ``answers=`` has as the key of the answer."""
        self.why: str = why
        """What is wrong with it, in words that don't depend on who has called."""


class NoApplication(ShoalError):
    """A run can't be recovered: the runtime has no application of its name and version.

    The run is left as it is, for a runtime that has.
    """


class InputChanged(RunConflict):
    """A child's input is not what it was when its result was reduced, so it can't be run again.

    What ``reduce`` made of the old result can't be undone. The message names the key.
    """


class RetryLater(ShoalError):
    """An action asks to be tried again ``after`` so many seconds: a server said so, mostly.

    Raise it. It needs no ``Retry`` and uses up no attempt. It pauses the key, in every ``Limits``
    in force that has ``by=``: of the action, the application, the runtime, and of all fan-outs that
    it is inside of. Nothing more starts with that key meanwhile; what runs goes on. Whether or not
    there is a key, the child that raised it waits, and holds nothing. After 10 in a row, it fails
    with it.

    Args:
        after: Seconds until the next try; at least 0.
    """

    def __init__(self, after: float) -> None:
        """Ask for it."""
        if not isinstance(after, int | float) or not 0 <= after < float("inf"):
            msg = f"RetryLater(after) takes seconds, at least 0, not {after!r}"
            raise ValueError(msg)
        super().__init__(after)
        self.after: float = after

    def __str__(self) -> str:
        return f"asked to be tried again after {self.after:g} s"


class Poisoned(ShoalError):
    """A child was at work in execution after execution whose process died.

    It is taken for what kills them, and not started again. No ``Retry`` tries it again either. The
    message names it, and says what to do.
    """

    def __init__(self, message: str, crashes: int = 0) -> None:
        """Say which one it is, and in how many executions it was counted."""
        super().__init__(message)
        self.crashes: int = crashes
        """Executions in a row that have died while it was at work. Children are counted from the
        first crash of a run on, so one more execution has died before these."""


class StoreFailed(ShoalError):
    """The store raised instead of keeping a save, or of saying what it has kept.

    The execution ends at the last saved state. The store's own exception is the ``__cause__``.
    """


class RateUnavailable(ShoalError):
    """What keeps a rate that processes share failed, or did not answer, for too long.

    What waited for the rate has not started. The backend's own exception is the ``__cause__``.
    """


class LeaseLost(ShoalError):
    """Another execution has taken the run over, so this one ends; it publishes nothing more."""


class CommitInDoubt(ShoalError):
    """The store did not acknowledge a save before the commit deadline.

    The execution ends here: memory did not advance and nothing was published. Whether the save
    happened, the store says on the next resume.
    """


class Halting(BaseException):
    """Ends an attempt whose question nobody has answered yet. Raised by ``context.ask``.

    No ``Exception``, so that ``except Exception`` lets it pass, as it does a cancellation. What has
    to be cleaned up belongs into ``finally``. What an action does about it changes nothing: the
    attempt, however it ends, has come to nothing, and begins anew when the answer is there.
    """


# Tracebacks, ``ErrorInfo.type`` and pickles name them by ``shoal``, wherever they are defined (see
# test_errors_show_their_public_name).
for _one in [*globals().values()]:
    if isinstance(_one, type) and issubclass(_one, ShoalError | Halting):
        _one.__module__ = "shoal"

_SHOWN = 300
"""Characters of a value that a message shows."""


class _Brief(reprlib.Repr):
    """Shows values in part. Ints that have more digits than Python writes are hexadecimal."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # more digits than Python writes
            digits, shown = f"{x:#x}", self.maxlong // 2
            return f"{digits[:shown]}...{digits[-shown:]}"


_repr = _Brief()


def fork_advice(run_id: str, number: int | None) -> str:
    """Say how a new run is started from what another one had come to at an update's number."""
    if number is None:
        return f"start a new run with fork({run_id!r}, number=...) from before this step"
    before = "its beginning" if number == 0 else "before what can't be carried over"
    return f"start a new run from {before} with fork({run_id!r}, number={number})"


def brief(value: object) -> str:
    """Show ``value`` in a message: on one line, shortened, and whatever its own repr does.

    An error of ours is shown in full, because its message ends with what to do about it.
    """
    if isinstance(value, ShoalError):
        with suppress(Exception):  # of a subclass, which may be a user's
            return " ".join(repr(value).split())
    try:
        text = " ".join(_repr.repr(value).split())
    except Exception:  # noqa: BLE001 # of a class that is called list, say, and isn't one
        text = f"<{type(value).__name__} instance at {id(value):#x}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[3 - _SHOWN // 2 :]}"


def kind_of(value: object) -> str:
    """Say in a message what ``value`` is: "a list", "an int", "None"."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that is most like ``word``, if one is: ``"; did you mean 'x'?"``."""
    matches = get_close_matches(word, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def note(error: BaseException, text: str) -> None:
    """Add a note to ``error``, once, if it takes notes: a frozen exception doesn't."""
    with suppress(Exception):  # its own code may run here; without the note it says enough
        if text not in getattr(error, "__notes__", ()):
            error.add_note(text)
