"""A store keeps what it has said, whoever kills its process; and the harness would notice if not.

The harness forks, so it runs in a process of its own, that has neither threads nor an event loop.
``python -m tests.crash --kills 100`` does by hand what is done here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.crash.harness import BACKENDS, check_effects, check_nothing_ran_again, check_tables
from tests.crash.life import PHASES, Death, Life, lines
from tests.crash.stores import Row
from tests.stores.durable import find_programs

can_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or not Path("/proc/self/stat").exists(),
    reason="forks, and sees by /proc that a process is gone",
)
ROOT = Path(__file__).parent.parent.parent
KILLS = 20  # of each phase, in the gate


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.crash", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def killed(kills: int, capsys: pytest.CaptureFixture[str], *more: str) -> None:
    done = command("--kills", kills, "--seed", 1, *more)
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(f"\n{done.stdout}", file=sys.stderr)  # which xdist's workers pass on
    # A service without keys would have these effects twice: the keys were put to the test.
    assert int(*re.findall(r"(\d+) bodies ran again", done.stdout)) > 0
    for phase in PHASES:
        (times,) = re.findall(rf"^{phase} .* (\d+)$", done.stdout, re.MULTILINE)
        assert int(times) >= kills


@can_fork
@pytest.mark.crash
@pytest.mark.sweep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_may_be_killed_at_any_moment(backend: str, capsys: pytest.CaptureFixture[str]):
    killed(KILLS, capsys, "--backend", backend)


@can_fork
@pytest.mark.crash
@pytest.mark.services
@pytest.mark.timeout(300)
def test_a_process_may_be_killed_at_any_moment_with_a_server(capsys: pytest.CaptureFixture[str]):
    find_programs()
    killed(2, capsys, "--store", "postgres")


@can_fork
@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_may_be_killed_very_often(backend: str, capsys: pytest.CaptureFixture[str]):
    killed(5 * KILLS, capsys, "--backend", backend)


@can_fork
@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(2400)
def test_a_process_may_be_killed_very_often_with_a_server(capsys: pytest.CaptureFixture[str]):
    find_programs()
    killed(5 * KILLS, capsys, "--store", "postgres")


@can_fork
@pytest.mark.crash
@pytest.mark.sweep
def test_a_store_that_says_too_early_that_it_has_kept_something_is_found():
    done = command("--kills", 1, "--store", "hasty")
    assert done.returncode == 1
    assert "told of, and not kept" in done.stderr
    (hint,) = re.findall(r"HINT: python -m tests.crash (.*) --keep FOLDER", done.stderr)
    again = command(*hint.split())
    assert again.stderr.splitlines()[0] == done.stderr.splitlines()[0], "it is killed as before"


# -- what is judged --------------------------------------------------------------------------------


def life(number: int, *, completed: Any = (), succeeded: Any = ()) -> dict[str, Any]:
    kept = {"completed": list(completed), "succeeded": list(succeeded)}
    return {"kind": "life", "life": number, **kept}


def body(kind: str, run: str, step: str = "step", life: int = 1) -> dict[str, Any]:
    above = [run, "run"]
    return {"kind": kind, "life": life, "run": run, "step": step, "visit": 0, "above": above}


def told(kind: str, run: str, life: int = 1, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "life": life, "run": run, **more}


BEGUN = [life(1), body("begin", "a"), body("end", "a")]


@pytest.mark.parametrize(
    ("effects", "heard"),
    [
        ([*BEGUN, life(2, completed=[["a", "step", 0]]), body("begin", "a", life=2)], []),
        ([*BEGUN, life(2, succeeded=["a"]), body("begin", "a", "other", life=2)], []),
        ([*BEGUN, life(2, succeeded=["run"]), body("begin", "b", life=2)], []),
        ([*BEGUN, life(2), body("begin", "a", life=2)], [told("child", "a", status="succeeded")]),
        ([*BEGUN, life(2), body("begin", "b", life=2)], [told("end", "run")]),
        ([*BEGUN, body("begin", "a")], []),
    ],
)
def test_what_runs_again_is_found(effects: list[Any], heard: list[Any]):
    with pytest.raises(AssertionError, match="ran"):
        check_nothing_ran_again(effects, heard)


def test_what_was_not_kept_may_run_again():
    effects = [*BEGUN, life(2), body("begin", "a", life=2), body("end", "a", life=2)]
    failed = [body("begin", "b", life=2), body("failure", "b"), body("begin", "b", life=2)]
    heard = [told("child", "b", status="failed"), told("child", "a", life=2, status="succeeded")]
    check_nothing_ran_again([*effects, *failed], heard)


def test_what_is_recorded_without_an_effect_is_found():
    fine = {"completed": [["a", "step", 0], ["run", "fan-out", 0]], "succeeded": ["a", "run"]}
    check_effects(BEGUN, fine)
    cut_short = BEGUN[:-1]
    with pytest.raises(AssertionError, match="step of a: no effect"):
        check_effects(cut_short, {"completed": [["a", "step", 0]], "succeeded": []})
    with pytest.raises(AssertionError, match="recorded without any effect: a"):
        check_effects(cut_short, {"completed": [], "succeeded": ["a"]})


UPDATE = told("update", "run", number=2, child="a")


def tables(*numbers: int, applied: int | None = 2, status: str = "succeeded") -> dict[str, Row]:
    return {"run": Row(status, None, list(numbers)), "a": Row(status, applied)}


def test_a_published_event_that_is_in_no_table_is_found():
    check_tables(tables(1, 2), [UPDATE, told("child", "a", status="succeeded"), told("end", "run")])
    wrong = [
        (tables(1), UPDATE),
        (tables(1, 2, applied=1), UPDATE),
        (tables(1, 2, 2), UPDATE),
        (tables(2), told("step", "run")),
        (tables(status="failed"), told("child", "a", status="succeeded")),
        (tables(status="failed"), told("end", "run")),
        (tables(), told("step", "b")),
    ]
    for found, line in wrong:
        with pytest.raises(AssertionError):
            check_tables(found, [line])


def test_nobody_dies_before_an_effect_that_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Body:
        run_id, step, idempotency_key = "a", "step", "key"

        class path:  # noqa: N801
            id, parent = "a", None

        class _run:  # noqa: N801
            @staticmethod
            def visit(step: str) -> int:
                return 0

    died = list[int]()
    context: Any = Body()

    def die(pid: int, number: int) -> None:
        died.append(len(lines(one.effects)))

    monkeypatch.setattr(os, "kill", die)

    def lived(*kinds: str) -> None:
        one.is_armed = True
        for kind in kinds:
            one.note(kind, context)
            one.passes("child")
            one.passes("source")

    one = Life(tmp_path, 1, Death("child", 2))
    lived("begin", "failure", "begin", "end", "begin")
    assert died == [5], "at the second passage behind the effect"
    one = Life(tmp_path, 2, Death("child", 1))
    lived("begin", "end", "begin")
    assert died == [5], "that effect is an old one"
