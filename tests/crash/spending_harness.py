"""Kills processes while they spend, and judges what has come of the money.

What holds, of each round:

- Never was more spent and under way than there is: at each line of what a provider has billed, and
  at each change of an account.
- A life that begins finds in its store at least what the lives before have cost, and no more than
  that and the worst cases of what was under way as they died.
- What a life spent that came to its end is the same by the result, by the events, by the store, and
  by what the attempts have said.
- What processes share is never exceeded, whoever dies, and the backend counts all that they spend.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import anyio

from shoal.rates import BudgetBackend, BudgetRequest

from .harness import BACKENDS, Wrong, fork
from .life import Death, lines
from .receiver import Account, Bills, judge, read
from .spending import MODES, MOST, PHASES, SLOTS, Given, Life, live
from .stores import STORES, running_server

PROCESSES = 3
"""That share a budget."""
ATTEMPTS = 6
"""Of each child of the outer fan-out, about."""
AMOUNTS = (0.4, 1.0, 3.0)
"""How much there is, of what would be spent if there were enough."""


@dataclass
class Process:
    """One process and its lives, each a process of the system."""

    folder: Path
    number: int
    given: Given
    seed: str
    random: Random
    mean: float
    """Passages of a phase, on average, until it dies."""
    kills: list[Death] = field(default_factory=list[Death])
    lives: int = 0
    pid: int = 0
    death: Death | None = None
    dies_at: float = 0.0
    """When it is killed from outside."""
    has_ended: bool = False

    def begin(self, *, is_last: bool) -> None:
        """Begin a life."""
        self.lives += 1
        death = None
        if not is_last:
            phase = self.random.choice(PHASES)
            death = Death(phase, 1 + int(self.random.expovariate(1 / self.mean)))
        self.death = death
        name = f"{self.number}.{self.lives}"

        def work() -> None:
            live(Life(self.folder, name, self.seed, death), self.given)

        self.folder.mkdir(exist_ok=True)
        self.pid = fork(self.folder, work)
        self.dies_at = time.monotonic() + 0.02 + self.random.expovariate(1 / (self.mean * 0.003))

    def look(self) -> bool:
        """Return whether the life is over; kill it if it is time for that."""
        death = self.death
        if death is not None and death.phase == "outside" and time.monotonic() > self.dies_at:
            os.kill(self.pid, signal.SIGKILL)  # it is no other's number before it is waited for
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return False
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL and death is not None:
            self.kills.append(death)
        elif code:
            said = [self.folder / name for name in ("failure", "hang")]
            texts = [file.read_text() for file in said if file.exists()]
            raise Wrong(f"life {self.number}.{self.lives} ended with {code}:\n" + "\n".join(texts))
        else:
            self.has_ended = True
        return True


@dataclass
class Round:
    """One run, or several that share a budget, from the first life to the last."""

    seed: str
    number: int
    given: Given
    folder: Path
    processes: list[Process]
    children: int = 0
    attempts: int = 0

    def run(self, most: int) -> None:
        """Live until each process has had a life that wasn't killed; kill at most so often."""
        for process in self.processes:
            process.begin(is_last=not most)
        left = list(self.processes)
        try:
            while left:
                time.sleep(0.001)
                for process in [one for one in left if one.look()]:
                    if process.has_ended:
                        left.remove(process)
                    else:
                        killed = sum(len(one.kills) for one in self.processes)
                        process.begin(is_last=killed >= most)
        finally:
            for process in left:
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, 0)

    # -- judging --------------------------------------------------------------------------------

    def judge(self) -> None:
        """Raise if anything doesn't hold."""
        given = self.given
        money = "team" if given.mode.where == "processes" else "USD"
        bills = judge(read(self.folder / "bills"), {money: given.amount, "tokens": 1e6})
        self.children, self.attempts = len(bills.runs), len({at for at, _ in bills.counted})
        spent = sum(self._judge(process, bills, money) for process in self.processes)
        if given.shared is not None:
            used = anyio.run(_used, given)
            assert spent <= used <= given.amount, (
                f"{spent} is spent, the backend counts {used} of {given.amount}"
            )

    def _judge(self, process: Process, bills: Bills, money: str) -> float:
        told = lines(process.folder / "spent")
        by_life = dict[str, dict[str, Any]]()
        for line in lines(process.folder / "levels"):
            by_life.setdefault(line["life"], {})[line["kind"]] = line
        names = list(by_life)
        label = self.given.mode.label()
        final = 0.0
        for account in {(money, ""), *bills.accounts}:
            stored_as = (label, "") if account[0] == money else account
            for name, after in zip(names, (*names[1:], None), strict=True):
                began = _stored(by_life[name]["begins"], stored_as)
                ended = by_life[name].get("ends")
                then = ended if after is None else by_life[after]["begins"]
                assert then is not None, f"life {name} has neither ended nor was it killed"
                rise = _stored(then, stored_as) - began
                events = sum(
                    line["cost"]
                    for line in told
                    if line["life"] == name and (line["budget"], line["key"]) == account
                )
                least, most = bills.of(account, name), bills.worst_of(account, name)
                what = f"{account} in life {name}: {rise} by the store, {events} by events"
                assert events <= rise, what
                assert least <= rise, f"{what}, and at least {least} is billed"
                # Of what had its money set aside as it died, and had not begun.
                waits = SLOTS * MOST if ended is None else 0.0
                assert rise <= most + waits, f"{what}, and at most {most} can be"
                if ended is not None:
                    assert events == rise == least, f"{what}, and {least} is billed"
                if after is None:
                    final = _stored(then, stored_as) if account[0] == money else final
        [ended] = [one["ends"] for one in by_life.values() if "ends" in one]
        whole = {"tokens": 0.0}
        for budget, key, spent, aside, by in ended["levels"]:
            # Where nothing more was spent since a life was killed, its record stands as it was.
            as_billed = (money if budget == label else budget), key
            is_old = not bills.worst_of(as_billed, names[-1])
            assert is_old or aside == 0, ended
            assert by == spent, f"{spent} is spent of {budget}, and {by} by actions"
            whole[budget] = whole.get(budget, 0.0) + spent + aside
        result = {"tokens": 0.0, **ended["result"]}
        assert result == whole, f"the result says {result}, and the store {whole}"
        return final

    def __str__(self) -> str:
        killed = "; ".join(", ".join(map(str, one.kills)) for one in self.processes)
        return (
            f"round {self.number} of seed {self.seed} ({self.given.mode.name}, "
            f"{self.given.backend}, {self.given.store}, {self.given.amount:g} for "
            f"{self.given.children} children), killed at: {killed}"
        )


def _stored(line: dict[str, Any], account: Account) -> float:
    """What a store counts as spent if nothing that is under way ever says anything."""
    return sum(
        spent + aside for budget, key, spent, aside, _ in line["levels"] if (budget, key) == account
    )


async def _used(given: Given) -> float:
    assert given.shared is not None
    backend: Any = given.shared()
    [reply] = await backend.spend([BudgetRequest(key="team", amount=given.amount)])
    backend.close()
    return reply.used


# -- many rounds -----------------------------------------------------------------------------------


@dataclass
class Tally:
    """How often which mode was killed where, and what was spent meanwhile."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    rounds: int = 0
    lives: int = 0
    children: int = 0
    attempts: int = 0

    def add(self, tried: Round) -> None:
        """Count a round."""
        self.rounds += 1
        self.children += tried.children
        self.attempts += tried.attempts
        for process in tried.processes:
            self.lives += process.lives
            self.kills.update((tried.given.mode.name, death.phase) for death in process.kills)

    def table(self) -> str:
        """Show kills per phase and mode."""
        rows = [f"{'':12}" + "".join(f"{name:>8}" for name in MODES)]
        for phase in PHASES:
            cells = "".join(f"{self.kills[name, phase] or '-':>8}" for name in MODES)
            rows.append(f"{phase:12}{cells}")
        return "\n".join(rows)


@contextmanager
def _shared_by_redis(folder: Path) -> Generator[Callable[[], BudgetBackend] | None]:
    from shoal.rates.redis import RedisRates
    from tests.rates.redis_server import Server, program_of

    program = program_of()
    if program is None:
        yield None
        return
    server = Server(program, folder)
    server.start()
    try:
        yield lambda: RedisRates(server.url, prefix=f"{_round[-1]}:")
    finally:
        server.kill()


@contextmanager
def _shared_by_postgres(_folder: Path) -> Generator[Callable[[], BudgetBackend] | None]:
    from shoal.rates.postgres import PostgresRates

    yield lambda: PostgresRates(running_server().address(), schema=f"rates {_round[-1]}")


_round = [0]
SHARED = {"sqlite": _shared_by_redis, "postgres": _shared_by_postgres}


def crash(
    kills: int,
    *,
    children: int = 0,
    seed: str = "1",
    store: str = "sqlite",
    size: int = 150,
    only: int | None = None,
    modes: tuple[str, ...] = tuple(MODES),
    fault: str = "",
    keep: Path | None = None,
) -> Tally:
    """Kill until there were that many kills, of that many children.

    Args:
        kills: How many at least.
        children: How many at least.
        seed: Decides all that is decided here; where processes are killed from outside, and share
            a budget, the machine decides too.
        store: Which store, by its name. What processes share is in Valkey or Redis beside SQLite.
        size: Children of the outer fan-out, of each run. Of each of these there are some five.
        only: The one round to try.
        modes: Those of ``MODES`` that take turns.
        fault: What is switched off, of ``FAULTS``, to see that this is found.
        keep: Where files are left.

    Raises:
        Wrong: Something doesn't hold.
    """
    for backend in BACKENDS:
        import_module(f"anyio._backends._{backend}")
    tally = Tally()
    with ExitStack() as stack:
        home = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        home.mkdir(exist_ok=True)
        stack.enter_context(STORES[store].serve())
        shared = stack.enter_context(SHARED[store](home)) if "shared" in modes else None
        turns = [MODES[name] for name in modes if name != "shared" or shared is not None]
        for number in count(1) if only is None else (only,):
            random = Random(f"{seed} {number}")
            _round.append(number)
            mode = turns[number % len(turns)]
            folder = home / f"{mode.name} {number}"
            folder.mkdir()
            several = PROCESSES if mode.where == "processes" else 1
            n = max(4, size // several)
            share = random.choice(AMOUNTS)
            given = Given(
                mode,
                store,
                random.choice(BACKENDS),
                n,
                # In whole eighths, and enough for the largest worst case.
                max(8.0, round(8 * share * n * several * ATTEMPTS * 0.6) / 8),
                fault,
                shared if several > 1 else None,
            )
            # So that a run of that size is killed some ten times, if each life goes so far.
            mean = max(3.0, n * several * ATTEMPTS / 20)
            processes = [
                Process(folder / f"run {i}", i, given, f"{seed} {number}", random, mean)
                for i in range(several)
            ]
            tried = Round(seed, number, given, folder, processes)
            try:
                tried.run(most=max(3, kills // 4))
                tried.judge()
            except AssertionError as error:
                again = f"python -m tests.crash --budgets --seed {seed} --only {number}"
                more = f" --store {store} --size {size} --modes {' '.join(modes)} --keep FOLDER"
                raise Wrong(f"{tried}\n{error}\nHINT: {again}{more}") from error
            tally.add(tried)
            if sum(tally.kills.values()) >= kills and tally.children >= children:
                break
    return tally
