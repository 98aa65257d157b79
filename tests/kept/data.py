"""Values of shoal's own classes, whose digests and pickles are kept.

They must stay as they are, as ``programs`` must.
"""

from __future__ import annotations

import importlib
import pickle
from base64 import b64encode
from types import FunctionType

import shoal
from shoal import (
    AIMD,
    END,
    INHERIT,
    Breaker,
    Cancelled,
    Done,
    Each,
    ErrorInfo,
    Failed,
    Halted,
    Hedge,
    Limits,
    NobodyAccepted,
    PositionedList,
    Question,
    Rate,
    Result,
    Retry,
    RetryBudget,
    RetryLater,
    RunPath,
    Skipped,
    State,
    StateList,
    StateMap,
    StepTimeout,
    Tolerate,
    all_,
    first,
    first_item,
    quorum,
)
from shoal._state.digest import digest
from shoal.errors import MissingField, NotData, Rejected, SavedError
from shoal.events import ChildName, Decision
from shoal.types import Ledger

PACKAGES = (
    "shoal",
    "shoal.errors",
    "shoal.events",
    "shoal.rates",
    "shoal.rates.redis",
    "shoal.stores",
    "shoal.types",
)

ROOT = RunPath(run_id="run", act="crawl")
PATH = RunPath(run_id="child", act="fetch", parent=ROOT, step="fetch", visit=1, key=3)
ERROR_INFO = ErrorInfo(type="ValueError", message="no", traceback="ValueError: no\n")
QUESTION = Question(path=PATH, step="ask", name="approve", question="May it?", id="child/ask/0")
WINNER = ChildName("fetch", 3)
MAP = StateMap({"a": 1}).put("b", 2, 0.5).put("c", 3)

DATA: dict[str, object] = {
    "StateList": StateList([1]).append(2),
    "StateMap": MAP,
    "PositionedList": PositionedList(StateMap[int, str]()).put_all([(1, "b", 1.0), (0, "a", 0.0)]),
    "State": State({"seen": StateList(["a"]), "by_name": MAP}),
    "ErrorInfo": ERROR_INFO,
    "END": END,
    "INHERIT": INHERIT,
    "NotData": NotData("no"),
    "StepTimeout": StepTimeout("late"),
    "MissingField": MissingField("no field"),
    "SavedError": SavedError("package:Gone", "no"),
    "RetryLater": RetryLater(2.0),
    "NobodyAccepted": NobodyAccepted("nobody", [Rejected("no"), ValueError("no")]),
}
"""What is in a state, and is pickled by names that are public."""

VALUES: dict[str, object] = {
    **DATA,
    "State, secret": State({"url": "a", "token": "b"}, secret={"token"}),
    "RunPath": PATH,
    "Question": QUESTION,
    "ChildName": WINNER,
    "Decision": Decision("race", WINNER, (WINNER,), "first"),
    "Done": Done(path=PATH, position=3, element="e", value=1, state=State({"n": 1})),
    "Failed": Failed(path=PATH, position=3, element="e", error=ValueError("no")),
    "Cancelled": Cancelled(path=PATH, position=3, element="e", reason="lost", winner=WINNER),
    "Skipped": Skipped(path=PATH, position=3, element="e", reason="no child"),
    "Halted": Halted(path=PATH, position=3, element="e", questions=(QUESTION,)),
    "Ledger": Ledger(done=3, failed=1),
    "Result": Result({"n": 1}),
    "all_": all_(),
    "first": first(2),
    "first_item": first_item(),
    "quorum": quorum(2),
    "Tolerate": Tolerate(share=0.5),
    "Each": Each(timeout=1.0, retry=Retry(on=ValueError)),
    "Hedge": Hedge(percentile=90),
    "Retry": Retry(2, on=(OSError, StepTimeout), budget=RetryBudget()),
    "Breaker": Breaker(),
    "Rate": Rate(5, 1.0),
    "Limits": Limits(3, rate=Rate(5, 1.0), by=len, adapt=AIMD()),
    "classes": [ErrorInfo, Done, {"raised": NotData}],
}


def kept() -> dict[str, dict[str, str]]:
    """Write what the present version makes of all that."""
    return {
        "names": {name: digest(one).hex() for name, one in sorted(public().items())},
        "values": {name: digest(value).hex() for name, value in VALUES.items()},
        "pickles": {
            name: b64encode(pickle.dumps(value, protocol=4)).decode()
            for name, value in DATA.items()
        },
    }


def public() -> dict[str, type | FunctionType]:
    """Return the classes and functions that are public, but for tests and services."""
    found = ((name, vars(importlib.import_module(name))["__all__"]) for name in PACKAGES)
    named = {
        name: getattr(importlib.import_module(package), name)
        for package, names in found
        for name in names
    }
    named["End"] = type(shoal.END)
    return {name: one for name, one in named.items() if isinstance(one, type | FunctionType)}
