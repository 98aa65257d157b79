"""The search for a model: a map and a race, on each executor; continued on another one."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest

from examples.model_search import search
from examples.model_search.search import MODELS, Point, Where, key, model_search, ranking
from shoal import Done, Hook, NobodyAccepted, RunResult, SQLiteStore
from shoal.events import ChildEnded

ROOT = Path(__file__).parents[2]
POINTS: list[Point] = [{"components": 10, "closeness": 1.0}, {"components": 5, "closeness": 0.1}]
Backend = Literal["asyncio", "trio"]
Scores = dict[str, dict[str, float]]
ALL_DIGITS = search.digits
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
HERE = pytest.mark.parametrize("where", ["loop", "threads"])

pytestmark = [pytest.mark.realtime, pytest.mark.timeout(120)]


def by_hand() -> Scores:
    fit = search.cross_validate
    return {key(one): {kind: fit(one, kind)["score"] for kind in MODELS} for one in POINTS}


@pytest.fixture(scope="module")
def scores() -> Iterator[Scores]:
    """The scores with a sixth of the pictures, so that a test takes a moment.

    They are computed before any loop runs, because scikit-learn looks for plugins on the disk when
    it is first used.
    """
    search.prepare()
    pictures, labels = search.digits()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(search, "digits", lambda: (pictures[::6], labels[::6]))
        yield by_hand()


def run(backend: Backend, where: Where = "loop", *hooks: Hook, **how: Any) -> RunResult:
    app = model_search(where=where, **how)
    app.hooks = hooks
    return app.run_sync({"points": POINTS}, id="r", backend=backend)


# -- here ------------------------------------------------------------------------------------------


@BACKENDS
@HERE
def test_a_map_has_the_scores_of_a_loop_by_hand(
    backend: Backend, where: Where, scores: Scores
) -> None:
    result = run(backend, where)
    assert result.state.to_plain()["scores"] == scores
    assert ranking(result.state)[0].score == max(max(one.values()) for one in scores.values())


@BACKENDS
@HERE
def test_a_race_ends_with_a_model_that_reaches_the_target(
    backend: Backend, where: Where, scores: Scores
) -> None:
    target = sorted(score for one in scores.values() for score in one.values())[-2]
    result = run(backend, where, target=target)
    (winner,) = ranking(result.state)
    assert winner.score == scores[winner.point][winner.model] >= target


@BACKENDS
def test_a_race_to_a_target_that_is_too_high_has_no_winner(
    backend: Backend, scores: object
) -> None:
    with pytest.raises(NobodyAccepted):
        run(backend, target=1.1)


class Ended(Hook):
    """Keeps the children that have a result."""

    def __init__(self) -> None:
        self.done: list[tuple[object, str]] = []

    def on_child_ended(self, event: ChildEnded) -> None:
        if isinstance(event.outcome, Done):
            self.done.append((event.outcome.key, event.outcome.act))


@BACKENDS
def test_a_search_continues_on_another_executor(
    backend: Backend, scores: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(tmp_path / "search.db")
    fits = Counter[tuple[str, float]]()

    def broken(closeness: float) -> Any:
        raise ConnectionError(closeness)

    for kind, make in MODELS.items():

        def counted(closeness: float, kind: str = kind, make: Any = make) -> Any:
            fits[kind, closeness] += 1
            return make(closeness)

        monkeypatch.setitem(MODELS, kind, counted)
    first = Ended()
    with monkeypatch.context() as now:
        now.setitem(MODELS, "neighbors", broken)
        with pytest.raises(ExceptionGroup):
            run(backend, "loop", first, store=store)
    result = run(backend, "threads", store=store)
    assert result.state.to_plain()["scores"] == scores
    closeness = {key(one): one["closeness"] for one in POINTS}
    assert first.done
    assert {fits[act, closeness[str(name)]] for name, act in first.done} == {1}


# -- elsewhere: each worker imports scikit-learn, which takes seconds ------------------------------


@pytest.fixture(scope="module")
def whole() -> Scores:
    """The scores with all pictures: workers know nothing of fewer."""
    search.prepare()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(search, "digits", ALL_DIGITS)
        return by_hand()


@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=pytest.mark.slow)])
def test_a_map_in_processes_has_the_same_scores(backend: Backend, whole: Scores) -> None:
    result = run(backend, "processes", workers=1)
    assert result.state.to_plain()["scores"] == whole


@pytest.mark.slow
@BACKENDS
def test_a_race_in_processes_ends_with_its_winner(backend: Backend) -> None:
    result = run(backend, "processes", workers=2, target=0.8)
    assert ranking(result.state)[0].score >= 0.8


@pytest.mark.services
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
@BACKENDS
def test_a_map_on_ray_has_the_same_scores(
    backend: Backend, whole: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    result = run(backend, "ray", workers=1)
    assert result.state.to_plain()["scores"] == whole


@pytest.mark.slow
def test_the_command_continues_after_a_kill(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "examples.model_search", "--executor"]
    with subprocess.Popen(
        [*command, "processes"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stderr is not None
        for line in killed.stderr:  # of the progress
            if "running" in line and "scores 0/" not in line:
                break
        killed.kill()
    ended = subprocess.run(
        [*command, "threads"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.splitlines()[0].split()[1] in MODELS
    assert len(ended.stdout.splitlines()) == 5


def test_without_ray_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("shoal.executors._ray_session.INSTALLED", None)
    database = str(tmp_path / "search.db")
    monkeypatch.setattr(sys, "argv", ["search", "--executor", "ray", "--database", database])
    with pytest.raises(SystemExit, match=r"^error: Ray is not installed; .*shoal\[ray\]"):
        runpy.run_module("examples.model_search", run_name="__main__")
