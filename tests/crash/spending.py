"""What the process does that is killed while it spends: a tree of runs, and what its attempts cost.

Amounts are multiples of an eighth, so that sums are exact.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import anyio

from shoal import (
    Application,
    Budget,
    Context,
    Graph,
    Hook,
    Limits,
    Retry,
    RetryLater,
    RunPath,
    Runtime,
    State,
    action,
    fan_out,
    first,
    race,
)
from shoal._engine.execution import Execution
from shoal._limits.accounts import Account as LiveAccount
from shoal._limits.accounts import Purse
from shoal.events import Spent
from shoal.rates import BudgetBackend
from shoal.stores import BudgetLevel, QuestionAnswered, Store

from .life import Death, append
from .receiver import Account, Receiver
from .stores import STORES

RUN = "run"
MANY = 1_000_000  # lives
SLOTS = 24
"""Attempts under way at once in one process."""
MOST = 2.0
"""The most that one attempt may cost."""
TOKENS = 3
"""Keys of the budget of tokens."""

PHASES = (
    "set aside",  # money is set aside, and not yet saved
    "begun",  # in the body of an attempt, before the provider bills it
    "billed",  # the provider has billed it, and nobody has said so
    "charged",  # it has said so, and that is not yet saved
    "batch save",  # before a save, or in its transaction
    "after save",  # behind that
    "outside",  # at whatever moment, by another process
)

FAULTS: dict[str, Callable[[], None]] = {
    # That the harness can fail: what is switched off must be found.
    "nothing set aside": lambda: setattr(Purse, "stake", _stake_nothing),
    "nothing recorded": lambda: setattr(Execution, "record_spent", _record_nothing),
}


@dataclass(frozen=True)
class Mode:
    """Where the budget of money stands, and what happens when it is empty."""

    name: str
    on_empty: Any
    where: str

    def label(self) -> str:
        return "team of the runtime" if self.where == "processes" else "USD"


MODES = {
    mode.name: mode
    for mode in (
        Mode("fail", "fail", "application"),
        Mode("stop", "stop", "fan-out"),
        Mode("ask", "ask", "application"),
        Mode("shared", "fail", "processes"),
    )
}


class Life:
    """One life of a process: what it writes down, and where it dies."""

    def __init__(self, folder: Path, name: str, seed: str, death: Death | None) -> None:
        """Begin.

        Args:
            folder: Of the run.
            name: Names the process, and which of its lives it is.
            seed: Decides what attempts do.
            death: Where it dies; None: nowhere.
        """
        self.folder = folder
        self.name = name
        self.random = Random(f"{seed} {name}")
        self.is_armed = False
        self._death = death
        self.receiver = Receiver(folder.parent / "bills", name)

    def passes(self, phase: str) -> None:
        """Come by a place of this phase; die there, if that is it."""
        death = self._death
        if death is None or not self.is_armed or death.phase != phase:
            return
        self._death = Death(phase, death.passage - 1)
        if not self._death.passage:
            os.kill(os.getpid(), signal.SIGKILL)


_lives: list[Life] = []


def worst_of(state: State) -> float:
    """The most that an attempt may cost that starts from this state."""
    n = state["p"] if "p" in state else state["n"]
    return (1 + n % 16) / 8


def key_of(state: State) -> int:
    return state["p"] % TOKENS


@asynccontextmanager
async def attempt(context: Context, n: int, tokens: int | None = None) -> AsyncGenerator[None]:
    """Cost something, by chance: say so or not, fail, be told to come later."""
    life, label = _lives[-1], "team" if _mode[-1].where == "processes" else "USD"
    money: Account = label, ""
    worst = worst_of(State(n=n))
    accounts: list[tuple[Account, float]] = [(money, worst)]
    if tokens is not None:
        accounts.append((("tokens", str(tokens)), 1.0))
    kind = life.random.randrange(8)
    name = life.receiver.begin(context.path.id, accounts)
    life.passes("begun")
    await anyio.sleep(life.random.choice((0, 0, 0.001, 0.002)))
    for account, most in accounts:
        cost = life.random.randrange(int(8 * most) + 1) / 8
        life.receiver.bill(name, account, cost)
        life.passes("billed")
        if kind == 0:
            continue  # it says nothing
        life.receiver.will_say(name, account, cost)
        context.charge(cost, unit=account[0] if account[0] != "team" else "USD")
        life.passes("charged")
    if kind == 1:
        raise OSError("the model has failed")
    if kind == 2 and life.random.random() < 0.3:
        raise RetryLater(0.001)
    yield
    if kind == 3:
        raise OSError("the model has failed in the end")


def tree(limits: Limits | None) -> Graph:
    """A map of chains: of a plan, a map with tokens, an action's own fan-out, and a race."""

    @action(reads=["n"], writes=["plan"], retry=Retry(2, on=OSError, initial=0.001))
    async def plan(n: int, context: Context) -> list[int]:
        async with attempt(context, n):
            return [7 * n + i for i in range(n % 5)]

    @action(reads=["p"], writes=["paid"])
    async def pay(p: int, context: Context) -> int:
        async with attempt(context, p, p % TOKENS):
            return p

    @action(reads=["p"], writes=["tool"])
    async def use(p: int, context: Context) -> int:
        async with attempt(context, p):
            return p

    @action(reads=["n"], writes=["own"])
    async def own(n: int, context: Context) -> int:
        async with attempt(context, n), context.fan_out(name="tools", limits=Limits(3)) as group:
            for p in range(n % 3):
                group.start(use, {"p": p}, key=p)
            async for _ in group:  # failures too, which are nothing to it
                pass
        return n

    def contestant(name: str) -> Any:
        @action(reads=["n"], writes=["first"], name=name)
        async def contest(n: int, context: Context) -> int:
            async with attempt(context, n):
                return n

        return contest

    inner = fan_out(
        pay, over="plan", item="p", into="inner", name="inner", key=int, on_error="ignore",
        limits=Limits(4) & Budget(1e6, "tokens", worst=1.0, by=key_of),
    )  # fmt: skip
    contest = race(
        contestant("one"), contestant("two"), into="first", until=first(), name="contest"
    )
    outer = fan_out(
        Graph.chain(plan, inner, own, contest), over="ns", item="n", into="outer", take="own",
        name="outer", key=int, on_error="ignore", limits=limits,
    )  # fmt: skip
    return Graph.chain(outer, name="spending")


class Tell(Hook):
    """Writes down what events say was spent."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def on_spent(self, event: Spent) -> None:
        more = {"budget": event.budget, "key": event.key, "cost": event.cost}
        append(self._life.folder / "spent", life=self._life.name, **more)


def _stake_nothing(purse: Purse, cost: float, accounts: Any, now: float) -> Any:
    return stake(purse, 0.0, accounts, now)


async def _record_nothing(_execution: Execution) -> None:
    """Keep nothing before an attempt begins."""


stake = Purse.stake
_mode: list[Mode] = []


def arm(life: Life, fault: str) -> None:
    """Have this process pass the places that are in the engine, and check each account."""
    save, changed, put_aside = Execution._save, LiveAccount._changed, Purse.stake

    async def saving(self: Execution, batch: Any, store: Store) -> None:
        life.passes("batch save")
        await save(self, batch, store)
        life.passes("after save")

    def staking(self: Purse, cost: float, accounts: Any, now: float) -> Any:
        try:
            return put_aside(self, cost, accounts, now)
        finally:
            life.passes("set aside")

    def changing(self: LiveAccount) -> None:
        # `os._exit`, because an exception would only fail some attempt.
        if self.grant is None and self.spent + self.aside > self.amount:
            (life.folder / "failure").write_text(f"more than there is: {self!r}")
            os._exit(3)
        changed(self)

    Execution._save = saving
    LiveAccount._changed = changing
    if fault:
        FAULTS[fault]()
        put_aside = Purse.stake
    Purse.stake = staking


async def levels(store: Any) -> dict[Account, tuple[float, float, float]]:
    """Read what a store has of each budget: spent, set aside, and spent by actions."""
    found = dict[Account, tuple[float, float, float]]()
    async with store:
        if await store.load(RUN) is None:
            return found
        for entry in await store.read(RunPath(run_id=RUN)):
            if isinstance(entry, BudgetLevel):
                by = sum(entry.by.values())
                found[entry.budget, entry.key] = entry.spent, entry.aside, by
    return found


async def _answers(store: Any) -> list[float]:
    """Return how much more was given, answer by answer."""
    entries = await store.read(RunPath(run_id=RUN))
    answers: list[Any] = [one.value for one in entries if isinstance(one, QuestionAnswered)]
    return answers


def _note(
    life: Life, kind: str, kept: dict[Account, tuple[float, float, float]], **more: Any
) -> None:
    stored = [[*account, *level] for account, level in kept.items()]
    append(life.folder / "levels", life=life.name, kind=kind, levels=stored, **more)


@dataclass(frozen=True)
class Given:
    """What all lives of one process have in common."""

    mode: Mode
    store: str
    backend: str
    children: int
    amount: float
    fault: str = ""
    shared: Callable[[], BudgetBackend] | None = None
    """Makes the client of what keeps the budget that processes share."""
    rounds: int = 3
    """How often somebody gives more."""


def live(life: Life, given: Given) -> None:
    """Live once, from what earlier lives have left: to the end of the run, or to death."""
    _lives.append(life)
    _mode.append(given.mode)
    arm(life, given.fault)
    killed: Any = life
    STORES[given.store].arm(killed)
    anyio.run(_live, life, given, backend=given.backend)


async def _live(life: Life, given: Given) -> None:
    store: Any = STORES[given.store].open(life.folder)
    kept = await levels(store)
    _note(life, "begins", kept)
    mode, team = given.mode, None
    where = dict[str, Limits]()
    if mode.where == "processes":
        assert given.shared is not None
        team = given.shared()
        money = Budget(
            given.amount, "USD", worst=worst_of, name="team", on_empty=mode.on_empty, backend=team
        )
    else:
        money = Budget(given.amount, "USD", worst=worst_of, on_empty=mode.on_empty)
    where[mode.where] = money
    slots = Limits(SLOTS)
    app = Application(
        tree(where.get("fan-out")),
        store=store,
        hooks=[Tell(life)],
        limits=where["application"] & slots if "application" in where else slots,
    )
    async with Runtime(max_crashes=MANY, limits=where.get("processes")) as runtime:
        life.is_armed = True
        result = await runtime.run(app, {"ns": list(range(given.children))}, id=RUN)
        while result.status == "halted":
            asked = [question for question in result.questions if question.name == "budget USD"]
            assert len({question.id for question in asked}) == 1, result.questions
            before = await _answers(store)
            more = given.amount / 2 if len(before) < given.rounds else 0.0
            life.receiver.more("USD", given.amount + sum(before) + more)
            result = await runtime.run(app, id=RUN, answers={asked[0].address: more})
        life.is_armed = False
    for link in () if team is None else (team,):
        close: Any = getattr(link, "close", None)
        if close is not None:
            close()
    kept = await levels(store)
    _note(life, "ends", kept, result=dict(result.spent), status=result.status)
