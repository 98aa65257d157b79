"""Errors: every exception that shoal raises by itself, for programs that handle more than a few.

The dozen that programs often catch are in ``shoal`` as well. ``except shoal.ShoalError`` catches
all of them but ``Halting``, which must pass through an action as a cancellation does. Tracebacks
and ``ErrorInfo.type`` name every one of them by ``shoal``: ``shoal.NotEncodable``.

Examples:
    >>> from shoal import Application, action
    >>> from shoal.errors import MissingField
    >>> @action(reads=["text"], writes=["length"])
    ... async def measure(text: str) -> int:
    ...     return len(text)
    >>> try:
    ...     Application(measure).run_sync({})
    ... except MissingField as error:
    ...     print("the state lacks", error.field)
    the state lacks text
"""

from __future__ import annotations

from shoal._errors.exceptions import (
    BadAnswer,
    BadKey,
    BadResult,
    BadUse,
    BudgetExceeded,
    ChangedInPlace,
    CommitInDoubt,
    DefinitionError,
    DepthExceeded,
    Draining,
    Halting,
    HookFailed,
    IncompleteStream,
    InputChanged,
    InvalidState,
    LeaseLost,
    MissingField,
    MissingInput,
    MissingSecret,
    NoApplication,
    NobodyAccepted,
    NotApplied,
    NotData,
    NotDecodable,
    NotEncodable,
    NoTransition,
    NotSendable,
    NotSteered,
    NoWorker,
    Overloaded,
    Poisoned,
    RateUnavailable,
    Rejected,
    RemoteError,
    RetryLater,
    RunCancelled,
    RunClaimed,
    RunConflict,
    SavedError,
    SecretLeaked,
    ShoalError,
    SpuriousCancel,
    StateError,
    StepTimeout,
    StoreFailed,
    TooFewChildren,
    TooManySteps,
    UndeclaredRead,
    UndeclaredWrite,
    UnknownQuestion,
    UnknownRun,
    UpdateTooLarge,
    WorkerDied,
)

__all__ = [
    "BadAnswer",
    "BadKey",
    "BadResult",
    "BadUse",
    "BudgetExceeded",
    "ChangedInPlace",
    "CommitInDoubt",
    "DefinitionError",
    "DepthExceeded",
    "Draining",
    "Halting",
    "HookFailed",
    "IncompleteStream",
    "InputChanged",
    "InvalidState",
    "LeaseLost",
    "MissingField",
    "MissingInput",
    "MissingSecret",
    "NoApplication",
    "NoTransition",
    "NoWorker",
    "NobodyAccepted",
    "NotApplied",
    "NotData",
    "NotDecodable",
    "NotEncodable",
    "NotSendable",
    "NotSteered",
    "Overloaded",
    "Poisoned",
    "RateUnavailable",
    "Rejected",
    "RemoteError",
    "RetryLater",
    "RunCancelled",
    "RunClaimed",
    "RunConflict",
    "SavedError",
    "SecretLeaked",
    "ShoalError",
    "SpuriousCancel",
    "StateError",
    "StepTimeout",
    "StoreFailed",
    "TooFewChildren",
    "TooManySteps",
    "UndeclaredRead",
    "UndeclaredWrite",
    "UnknownQuestion",
    "UnknownRun",
    "UpdateTooLarge",
    "WorkerDied",
]
