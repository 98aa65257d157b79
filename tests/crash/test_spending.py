"""No more is spent than there is, whoever kills whom; and the harness would notice if it were.

``python -m tests.crash --budgets --kills 100 --children 10000`` does by hand what is done here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.crash.receiver import Receiver, judge, read
from tests.crash.spending import FAULTS
from tests.stores.durable import find_programs

from .test_crash import can_fork, command


def killed(capsys: pytest.CaptureFixture[str], *more: object) -> None:
    done = command("--budgets", *more)
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(f"\n{done.stdout}", file=sys.stderr)  # which xdist's workers pass on


@can_fork
@pytest.mark.crash
@pytest.mark.sweep
@pytest.mark.timeout(120)
def test_a_process_may_be_killed_while_it_spends(capsys: pytest.CaptureFixture[str]):
    killed(capsys, "--kills", 4, "--size", 12, "--modes", "ask")


@can_fork
@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_processes_may_be_killed_very_often_while_they_spend(capsys: pytest.CaptureFixture[str]):
    killed(capsys, "--kills", 100, "--children", 10_000, "--size", 300)


@can_fork
@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(2400)
def test_the_same_with_a_server(capsys: pytest.CaptureFixture[str]):
    find_programs()
    killed(capsys, "--kills", 100, "--children", 10_000, "--size", 300, "--store", "postgres")


@can_fork
@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_switched_off_is_found(fault: str):
    done = command("--budgets", "--kills", 10, "--size", 40, "--fault", fault)
    assert done.returncode == 1
    assert re.search(r"spent or under way|by the store", done.stderr), done.stderr
    assert "HINT: python -m tests.crash --budgets --seed 1 --only" in done.stderr


# -- what is judged --------------------------------------------------------------------------------

MONEY = "USD", ""


def test_what_is_billed_is_added_up(tmp_path: Path):
    one, two = (Receiver(tmp_path / "bills", name) for name in ("0.1", "1.1"))
    said, silent = one.begin("a", [(MONEY, 2.0)]), two.begin("b", [(MONEY, 1.0)])
    one.bill(said, MONEY, 0.5)
    two.bill(silent, MONEY, 0.25)
    one.will_say(said, MONEY, 0.5)
    one.more("USD", 4.0)
    late = one.begin("a", [(MONEY, 2.0), (("tokens", "1"), 1.0)])
    bills = judge(read(tmp_path / "bills"), {"USD": 3.0, "tokens": 1.0})
    assert bills.of(MONEY) == 3.5, "one attempt has said 0.5, two count their worst case"
    assert (bills.of(MONEY, "0.1"), bills.worst_of(MONEY, "0.1")) == (2.5, 4.0)
    assert bills.runs == {"a", "b"}
    assert bills.accounts == {MONEY, ("tokens", "1")}
    assert late == "0.1:2"


def test_more_than_there_is_is_found(tmp_path: Path):
    life = Receiver(tmp_path / "bills", "0.1")
    life.will_say(life.begin("a", [(MONEY, 2.0)]), MONEY, 0.5)
    life.begin("b", [(MONEY, 2.0)])
    judge(read(tmp_path / "bills"), {"USD": 2.5})
    with pytest.raises(AssertionError, match=r"2\.5 of 2\.25 are spent or under way"):
        judge(read(tmp_path / "bills"), {"USD": 2.25})


def test_a_bill_above_what_counts_is_found(tmp_path: Path):
    life = Receiver(tmp_path / "bills", "0.1")
    attempt = life.begin("a", [(MONEY, 2.0)])
    life.bill(attempt, MONEY, 1.5)
    life.will_say(attempt, MONEY, 1.0)
    with pytest.raises(AssertionError, match=r"was billed 1\.5, and 1\.0 counts"):
        judge(read(tmp_path / "bills"), {"USD": 9.0})
