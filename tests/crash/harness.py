"""Kills a process again and again, until its run has ended; and judges what has come of it.

This process has imported all that a life needs, and forks it: a life costs what it does, not what
Python takes to start. It has no threads and no event loop, so forking is safe.

What holds, of each round:

- The run comes to what it comes to where nobody is killed, with as many updates.
- No step ran again that the store had as completed, or that a hook was told of as such.
- Each effect has one idempotency key, the same in all lives, which no other effect has.
- Nothing is recorded as done without the effect of doing it.
- Nothing was told that isn't in the store: by its port after each kill, by its tables in the end.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from .life import PHASES, Death, Life, lines, name_of
from .scenarios import SCENARIOS
from .stores import STORES
from .worker import RUN, live

HANGS_AFTER = 30.0
"""Seconds after which a life is held to hang."""
BACKENDS = ("asyncio", "trio")

FOCUSES = (*PHASES, "decision", "cleanup")
"""What rounds take turns to be about: more often what few scenarios come by."""


class Wrong(AssertionError):
    """Something that must hold doesn't; the message says in which round, and how to replay it."""


def fork(folder: Path, work: Callable[[], None], hangs_after: float = HANGS_AFTER) -> int:
    """Do ``work`` in a process of its own; return its number.

    Args:
        folder: Where it writes how it has failed.
        work: What it does.
        hangs_after: Seconds after which it is held to hang.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with (folder / "hang").open("w") as file:
            faulthandler.dump_traceback_later(hangs_after, exit=True, file=file)
            work()
            code = 0
    except BaseException:
        (folder / "failure").write_text(traceback.format_exc())
    finally:
        os._exit(code)


@dataclass
class Round:
    """One run, from its first life to its last."""

    seed: str
    number: int
    scenario: str
    backend: str
    store: str
    folder: Path
    focus: str = ""
    """The phase that it is killed in most."""
    random: Random = field(default_factory=Random)
    kills: list[Death] = field(default_factory=list[Death])
    """Those that count: each after an effect that was new."""
    wasted: int = 0
    """Those that don't."""
    lives: int = 0

    def run(self) -> None:
        """Live until a life isn't killed."""
        random = self.random
        phases = [phase for phase in PHASES if phase in SCENARIOS[self.scenario].phases]
        ended = False
        while not ended:
            phase = random.choice([*[self.focus] * len(phases), *phases])
            ended = self._live(Death(phase, 1 + int(random.expovariate(0.6))))

    def run_undisturbed(self) -> None:
        """Live once, without being killed."""
        assert self._live(None)

    def _live(self, death: Death | None) -> bool:
        """Live once; return whether the run has ended with that."""
        self.lives += 1
        number = self.lives
        told = len(lines(self.folder / "effects"))

        def work() -> None:
            live(Life(self.folder, number, death), self.scenario, self.store, self.backend)

        pid = fork(self.folder, work)
        if death is not None and death.phase == "outside":
            self._kill(pid, number, self.random.uniform(0, 0.02))
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL:
            assert death is not None
            if self._is_news(told):
                self.kills.append(death)
            else:
                self.wasted += 1
            return False
        if code:
            said = [self.folder / name for name in ("failure", "hang")]
            texts = [file.read_text() for file in said if file.exists()]
            raise Wrong(f"life {number} ended with {code}:\n" + "\n".join(texts))
        return True

    def _kill(self, pid: int, number: int, delay: float) -> None:
        """Kill a life, some time after its first effect; unless it ends before."""
        until = time.monotonic() + HANGS_AFTER
        known = len(lines(self.folder / "effects"))
        while time.monotonic() < until and not self._is_news(known):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)

    def _is_news(self, known: int) -> bool:
        """Tell whether there has been an effect that is new since there were that many lines."""
        effects = lines(self.folder / "effects")
        ended = {name_of(line) for line in effects[:known] if line["kind"] == "end"}
        return any(line["kind"] == "end" and name_of(line) not in ended for line in effects[known:])

    # -- judging --------------------------------------------------------------------------------

    @property
    def result(self) -> dict[str, Any]:
        """What the last life has left."""
        return lines(self.folder / "result")[-1]

    def judge(self, clean: dict[str, Any]) -> None:
        """Raise if anything doesn't hold."""
        result = self.result
        same = ("text", "completed", "succeeded", "updates")
        for came_to in lines(self.folder / "result"):  # some may have been killed after that
            for name in same[:-1] if SCENARIOS[self.scenario].fails else same:
                now, then = came_to[name], clean[name]
                assert now == then, f"{name}: {now}\ninstead of {then}"
        effects, told = lines(self.folder / "effects"), lines(self.folder / "told")
        check_nothing_ran_again(effects, told)
        check_effects(effects, result)
        check_keys(effects)
        check_tables(STORES[self.store].tables(self.folder), told)

    def __str__(self) -> str:
        killed = ", ".join(map(str, self.kills))
        return (
            f"round {self.number} of seed {self.seed} ({self.scenario}, {self.backend}, "
            f"{self.store}), {self.lives} lives, killed at: {killed}"
        )


def check_nothing_ran_again(effects: Sequence[dict[str, Any]], told: Sequence[Any]) -> None:
    """No body began of what was completed: as the store had said, or as a hook was told before."""
    completed, succeeded = set[tuple[str, str, int]](), set[str]()
    done_in = dict[str, int]()  # in which life it was told that a child is done
    for line in told:
        if (line["kind"] == "child" and line["status"] == "succeeded") or line["kind"] == "end":
            done_in.setdefault(line["run"], line["life"])
    ended = set[tuple[str, str, int]]()  # in this life
    for line in effects:
        match line["kind"]:
            case "life":
                completed = {tuple(step) for step in line["completed"]}
                succeeded = set(line["succeeded"])
                ended = set[tuple[str, str, int]]()
            case "begin":
                name = name_of(line)
                assert name not in completed, f"completed, and ran again: {line}"
                assert name not in ended, f"ran twice in one life: {line}"
                for run in line["above"]:
                    assert run not in succeeded, f"ended, and ran again: {line}"
                    assert done_in.get(run, line["life"]) >= line["life"], f"ran again: {line}"
            case "end":
                ended.add(name_of(line))
            case kind:
                assert kind == "failure", line


def check_effects(effects: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    """Nothing is recorded whose body hasn't come to its end."""
    bodies = {line["step"] for line in effects if line["kind"] == "begin"}
    ended = {name_of(line) for line in effects if line["kind"] == "end"}
    below = {run for line in effects if line["kind"] == "end" for run in line["above"]}
    for run, step, visit in result["completed"]:
        assert step not in bodies or (run, step, visit) in ended, f"{step} of {run}: no effect"
    for run in result["succeeded"]:
        assert run in below, f"recorded without any effect: {run}"


def check_keys(effects: Sequence[dict[str, Any]]) -> None:
    """A service that knows keys has each effect once, however often the action was called."""
    received = dict[str, tuple[str, str, int]]()  # what such a service has, by key
    for line in effects:
        if line["kind"] == "begin":
            known = received.setdefault(line["key"], name_of(line))
            assert known == name_of(line), f"one key for {known} and {line}"
    sent = {name_of(line) for line in effects if line["kind"] == "begin"}
    assert len(received) == len(sent), f"{len(sent)} effects under {len(received)} keys"


def check_tables(tables: dict[str, Any], told: Sequence[dict[str, Any]]) -> None:
    """What a hook was told stands in the tables; each update there is once."""
    for run, row in tables.items():
        numbers = sorted(row.numbers)
        assert len(set(numbers)) == len(numbers), f"updates {numbers} of {run}"
        assert run != RUN or numbers == list(range(1, len(numbers) + 1)), numbers
    for line in told:
        row = tables.get(line["run"])
        assert row is not None, f"told of, and in no table: {line}"
        match line["kind"]:
            case "update":
                is_last = row.status == "succeeded" and line["run"] != RUN
                assert is_last or line["number"] in row.numbers, f"in no table: {line}"
                child = line["child"]
                assert child is None or tables[child].applied == line["number"], line
            case "child" if line["status"] == "succeeded":
                assert row.status == "succeeded", f"in the table {row.status}: {line}"
            case "end":
                assert row.status == "succeeded", f"in the table {row.status}: {line}"
            case _:
                continue


# -- many rounds -----------------------------------------------------------------------------------


@dataclass
class Tally:
    """How often which scenario was killed where."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    rounds: int = 0
    lives: int = 0
    wasted: int = 0
    again: int = 0
    """Bodies that had come to their end, and ran again, since that was not yet kept."""

    def add(self, tried: Round) -> None:
        """Count a round."""
        self.rounds += 1
        self.lives += tried.lives
        self.wasted += tried.wasted
        self.kills.update((tried.scenario, death.phase) for death in tried.kills)
        ended = [name_of(one) for one in lines(tried.folder / "effects") if one["kind"] == "end"]
        self.again += len(ended) - len(set(ended))

    def of(self, phase: str) -> int:
        """Count the kills of a phase."""
        return sum(times for (_, where), times in self.kills.items() if where == phase)

    def table(self) -> str:
        """Show kills per phase and scenario."""
        names = list(SCENARIOS)
        rows = [["phase", *names, "all"]]
        for phase in PHASES:
            cells = [self.kills[name, phase] for name in names]
            rows.append([phase, *(str(cell or "-") for cell in cells), str(sum(cells))])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


@contextmanager
def _explained(tried: Round) -> Generator[None]:
    try:
        yield
    except AssertionError as error:
        again = f"python -m tests.crash --seed {tried.seed} --only {tried.number}"
        more = f" --backend {tried.backend} --store {tried.store} --keep FOLDER"
        raise Wrong(f"{tried}\n{error}\nHINT: {again}{more}") from error


def crash(
    kills: int,
    *,
    seed: str = "1",
    store: str = "sqlite",
    backends: Sequence[str] = BACKENDS,
    only: int | None = None,
    keep: Path | None = None,
) -> Tally:
    """Kill until each phase has had that many.

    Args:
        kills: How many of each phase.
        seed: Decides all that is decided here.
        store: Which store, by its name.
        backends: Takes turns.
        only: The one round to try.
        keep: Where files are left, for a look at them.

    Raises:
        Wrong: Something doesn't hold.
    """
    for backend in backends:  # so that no life has to import anything
        import_module(f"anyio._backends._{backend}")
    tally = Tally()
    clean = dict[tuple[str, str], dict[str, Any]]()
    with STORES[store].serve(), tempfile.TemporaryDirectory() as folder:
        home = keep or Path(folder)
        STORES[store].open(Path("nothing"))
        gc.freeze()  # and all share what is there

        def new(number: int, scenario: str, backend: str) -> Round:
            place = home / f"{scenario} {backend} {number}"
            place.mkdir(parents=True)
            return Round(seed, number, scenario, backend, store, place)

        for number in count(1) if only is None else (only,):
            random = Random(f"{seed} {number}")  # so each can be replayed without the others
            focus = FOCUSES[number % len(FOCUSES)]
            turns = [name for name, one in SCENARIOS.items() if focus in one.phases]
            scenario = turns[(number + number // len(FOCUSES)) % len(turns)]
            # not by the same chance, or each would be killed otherwise where there is but one
            backend = Random(f"{seed} {number}'s backend").choice(backends)
            if (scenario, backend) not in clean:
                undisturbed = new(0, scenario, backend)
                with _explained(undisturbed):
                    undisturbed.run_undisturbed()
                    clean[scenario, backend] = undisturbed.result
                    undisturbed.judge(undisturbed.result)
            tried = new(number, scenario, backend)
            tried.focus, tried.random = focus, random
            with _explained(tried):
                tried.run()
                tried.judge(clean[scenario, backend])
            tally.add(tried)
            if all(tally.of(phase) >= kills for phase in PHASES):
                break
            if number > 100 + 20 * kills:
                raise Wrong(f"{number} rounds, and not every place was come by:\n{tally.table()}")
    return tally
