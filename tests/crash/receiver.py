"""What a provider has billed: a file that outlives all processes that are killed, and its judge.

An attempt writes a line when it begins, when the provider bills it, and before it says what it has
cost. Each is one write, so the lines of all processes are in one order. That makes a lower bound of
what a budget counts, at every moment: the worst case of an attempt until it has said something,
since that is settled only after the line is there.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Account = tuple[str, str]
"""A budget, and a key of it."""


class Receiver:
    """Writes down what the attempts of one life of a process cost."""

    def __init__(self, file: Path, life: str) -> None:
        """Append to a file.

        Args:
            file: The file, of all lives of all processes.
            life: Names the process, and which of its lives it is.
        """
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._life = life
        self._attempts = 0

    def _write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def begin(self, run: str, worst: Iterable[tuple[Account, float]]) -> str:
        """Note that an attempt begins; return its name."""
        self._attempts += 1
        name = f"{self._life}:{self._attempts}"
        for (budget, key), cost in worst:
            self._write("begins", name, run, budget, key or "-", cost)
        return name

    def bill(self, attempt: str, account: Account, cost: float) -> None:
        """Note that the provider has billed an attempt."""
        self._write("billed", attempt, "-", account[0], account[1] or "-", cost)

    def will_say(self, attempt: str, account: Account, cost: float) -> None:
        """Note what an attempt is about to say."""
        self._write("says", attempt, "-", account[0], account[1] or "-", cost)

    def more(self, budget: str, amount: float) -> None:
        """Note that a person is about to give more, so that there is so much in all."""
        self._write("more", "-", "-", budget, "-", amount)


class Line(NamedTuple):
    """A line of the file."""

    kind: str
    attempt: str
    run: str
    account: Account
    cost: float

    @property
    def life(self) -> str:
        return self.attempt.partition(":")[0]


def read(file: Path) -> Iterator[Line]:
    """Read the whole lines of a file."""
    text = file.read_text() if file.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        kind, attempt, run, budget, key, cost = line.split(" ")
        yield Line(kind, attempt, run, (budget, "" if key == "-" else key), float(cost))


@dataclass
class Bills:
    """All that was billed, and the most that there was at any moment."""

    counted: dict[tuple[str, Account], float] = field(
        default_factory=dict[tuple[str, Account], float]
    )
    """What a budget counts at least, by attempt and account."""
    billed: dict[tuple[str, Account], float] = field(
        default_factory=dict[tuple[str, Account], float]
    )
    worst: dict[tuple[str, Account], float] = field(
        default_factory=dict[tuple[str, Account], float]
    )
    said: set[tuple[str, Account]] = field(default_factory=set[tuple[str, Account]])
    runs: set[str] = field(default_factory=set[str])

    def of(self, account: Account, life: str | None = None) -> float:
        """Return what one account counts at least, of one life or of all."""
        return sum(
            cost
            for (attempt, of), cost in self.counted.items()
            if of == account and life in (None, attempt.partition(":")[0])
        )

    def worst_of(self, account: Account, life: str) -> float:
        """Return what the attempts of a life would have cost at most."""
        return sum(
            cost
            for (attempt, of), cost in self.worst.items()
            if of == account and attempt.partition(":")[0] == life
        )

    @property
    def accounts(self) -> set[Account]:
        return {account for _, account in self.counted}


def judge(lines: Iterable[Line], amounts: dict[str, float]) -> Bills:
    """Add up what was billed, and check at each line that there was so much.

    Args:
        lines: The lines of the file.
        amounts: How much each budget has, for each of its keys.

    Raises:
        AssertionError: More was under way and spent than there is.
    """
    bills, total = Bills(), defaultdict[Account, float](float)
    amounts = dict(amounts)
    for line in lines:
        at = line.attempt, line.account
        match line.kind:
            case "more":
                amounts[line.account[0]] = max(amounts[line.account[0]], line.cost)
                continue
            case "begins":
                assert at not in bills.counted, line
                bills.worst[at], bills.billed[at] = line.cost, 0.0
                bills.runs.add(line.run)
            case "billed":
                bills.billed[at] += line.cost
                assert bills.billed[at] <= bills.worst[at], line
                continue
            case kind:
                assert kind == "says", line
                bills.said.add(at)
        total[line.account] += line.cost - bills.counted.get(at, 0.0)
        bills.counted[at] = line.cost
        there = amounts[line.account[0]]
        assert total[line.account] <= there, (
            f"{total[line.account]} of {there} are spent or under way: {line}"
        )
    for at, cost in bills.billed.items():
        assert cost <= bills.counted[at], f"{at} was billed {cost}, and {bills.counted[at]} counts"
    return bills
