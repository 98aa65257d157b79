"""Faults and plans of faults: what goes wrong in a simulated run, where, and at which pass.

Invariants:
- A plan is a line of text and back: the text that a failure prints replays it, in any process.
- A place is passed once at each call of a function, of the store and of a hook, and at each step of
  the event loop. Passes are counted in each life by itself, so that a life is what a process does.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, final

from shoal._errors.exceptions import BadUse, did_you_mean

Backend = Literal["asyncio", "trio"]

SAVE, READ, STEP = "store.save", "store.read", "loop.step"
ACTION, HOOK = "action.", "hook."

OF_ACTIONS = {
    "raises": "raised before it did anything",
    "loses": "had its effect, and its answer was lost: it raised",
    "late": "answered late",
    "hangs": "never answered",
}
OF_SAVES = {
    "fails": "failed, and nothing was saved",
    "slow": "was slow",
    "in-doubt": "was done, and never acknowledged",
    "unknown": "was not done, and never answered",
    "dies-before": "was the end of the process, before anything was saved",
    "dies-after": "was the end of the process, after it was done",
}
OF_READS = {"fails": "failed", "slow": "was slow"}
OF_HOOKS = {"raises": "raised"}
OF_STEPS = {
    "cancelled": "the run was cancelled, by a scope",
    "cancelled-natively": "the run was cancelled, by asyncio.Task.cancel",
    "jumps": "the clock jumped",
}

Passed = Sequence[Mapping[str, int]]
"""How often each place was passed, in each life of a run."""

LONG = frozenset({"late", "slow", "jumps"})
"""The faults that take seconds."""
KILLS = frozenset({"dies-before", "dies-after"})
"""The faults with which a life ends."""
CANCELS = frozenset({"cancelled", "cancelled-natively"})


def kinds_at(place: str) -> dict[str, str]:
    """Return what can go wrong at a place, with what happened then, in words."""
    if place.startswith(ACTION):
        return OF_ACTIONS
    if place.startswith(HOOK):
        return OF_HOOKS
    return {SAVE: OF_SAVES, READ: OF_READS, STEP: OF_STEPS}.get(place, {})


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong once: in which life, where, and when that place is passed."""

    what: str
    place: str
    nth: int
    seconds: float = 0.0
    life: int = 1

    def __str__(self) -> str:
        life = f"{self.life}:" if self.life > 1 else ""
        seconds = f"+{self.seconds:g}" if self.what in LONG else ""
        return f"{life}{self.what}{seconds}@{self.place}:{self.nth}"

    @property
    def sentence(self) -> str:
        """For people: ``call 2 of action 'charge' raised before it did anything``."""
        did = kinds_at(self.place)[self.what]
        by = f", by {self.seconds:g} s" if self.what in LONG else ""
        if self.place == STEP:
            return f"before step {self.nth} of the event loop {did}{by}"
        if self.place.startswith(HOOK):
            event = self.place.removeprefix(HOOK)
            return f"a guarding hook {did} on {event} number {self.nth}"
        if self.place.startswith(ACTION):
            return f"call {self.nth} of action {self.place.removeprefix(ACTION)!r} {did}{by}"
        call = "save" if self.place == SAVE else "other call"
        return f"{call} {self.nth} of the store {did}{by}"


_FAULT = re.compile(
    r"(?:(?P<life>\d+):)?(?P<what>[a-z-]+)(?:\+(?P<seconds>[\d.e+]+))?@(?P<place>.+):(?P<nth>\d+)",
    re.DOTALL,
)


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """One simulated run: its backend, the order of its steps, and what goes wrong in it."""

    backend: Backend
    order: int | None
    """The seed of the order of steps; None: first come, first served."""
    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        order = "in-order" if self.order is None else str(self.order)
        return " ".join([self.backend, order, *(shlex.quote(str(one)) for one in self.faults)])


def plan_of(text: str) -> Plan:
    """Return the plan that a text is.

    Raises:
        BadUse: It is none.
    """
    words = shlex.split(text)
    if len(words) < 2 or words[0] not in ("asyncio", "trio"):  # noqa: PLR2004
        _refuse(text, "it begins with 'asyncio' or 'trio', then a number or 'in-order'")
    backend, order, *faults = words
    if order != "in-order" and not order.isdigit():
        _refuse(text, f"the order {order!r} is neither a number nor 'in-order'")
    seed = None if order == "in-order" else int(order)
    return Plan(backend, seed, tuple(_fault_of(text, one) for one in faults))  # pyright: ignore[reportArgumentType] # looked at above


def _fault_of(text: str, word: str) -> Fault:
    found = _FAULT.fullmatch(word)
    if found is None:
        _refuse(text, f"{word!r} is no fault such as 'raises@action.fetch:2'")
    what, place = found["what"], found["place"]
    known = kinds_at(place)
    if what not in known:
        can = ", ".join(known) or "nothing"
        _refuse(text, f"{can} can go wrong at {place!r}, not {what!r}{did_you_mean(what, known)}")
    return Fault(
        what, place, int(found["nth"]), float(found["seconds"] or 0), int(found["life"] or 1)
    )


def _refuse(text: str, why: str) -> NoReturn:
    msg = f"replay={text!r}: {why}. HINT: copy the text from the failure that it replays"
    raise BadUse(msg)


@final
class Passes:
    """Counts the passes of places in one life, and says what goes wrong at each.

    ``fired`` are the faults that have happened, in order, and ``counts`` how often each place was
    passed.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._pending = {(fault.place, fault.nth): fault for fault in faults}
        self.counts: Counter[str] = Counter()
        self.fired: list[Fault] = []
        self.has_died: bool = False
        """Whether the process has ended: nothing that is done from now on is done by it."""

    def expects(self, place: str, what: str | None = None) -> bool:
        """Return whether something is still to go wrong at a place."""
        return any(
            fault.place == place and what in (None, fault.what) for fault in self._pending.values()
        )

    def at(self, place: str) -> Fault | None:
        """Pass a place; return what goes wrong at this pass."""
        self.counts[place] += 1
        if not self._pending:
            return None
        fault = self._pending.pop((place, self.counts[place]), None)
        if fault is not None:
            self.fired.append(fault)
            self.has_died = self.has_died or fault.what == "dies-before"
        return fault
