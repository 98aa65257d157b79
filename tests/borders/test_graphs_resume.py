"""Random applications, stopped at random moments and gone on with, compared with their model.

The applications are those of `test_graphs`. In each of its lives a run's store dies, fails or
hangs at some call, or the run is cancelled at some moment; in the last one nothing happens to it.
Then it has come to what the sequential model comes to, every update was applied once, and hooks
have never seen what the store didn't have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any

import anyio
import pytest

from shoal import Application, MemoryStore, StoreFailed
from shoal.errors import CommitInDoubt
from shoal.testing import RecordingHook, no_leaks, run_virtual
from shoal.testing._crash import Manner, _Unsteady
from tests.engine.test_resume import Watch, check_histories, kept_runs

from .interrupted import EXPECTED, Backend, leaves
from .test_graphs import ModelFails, Program, Unsure, plain

LIVES = 6


class Case:
    """A program, and what happens to it in each of its lives."""

    def __init__(self, seed: int, backend: Backend) -> None:
        self.random = Random(f"{backend} {seed}")
        self.backend: Backend = backend
        self.seed = seed
        self.program = Program(self.random, on_asyncio=False)
        self.store = MemoryStore()
        self.watch = Watch()
        self.ends = list[str]()

    def run(self) -> str:
        """Live all lives, and return how the last one ended."""
        for _ in range(self.random.randrange(1, LIVES)):
            if self.live(last=False) in ("succeeded", "failed"):
                break
        before = self.store.copy()
        end = self.live(last=True)
        if self.ends[-2] == "succeeded":
            assert histories(self.store) == histories(before), "it runs nothing that was done"
        return end

    def live(self, *, last: bool) -> str:
        random = self.random
        manner = Manner(
            how=random.choice(["dies", "dies", "fails", "hangs"]),
            times=1,
            delay=random.choice([0, 0, 0.25]),
            backend=self.backend,
            seed=self.seed,
        )
        until = random.choice([0.5, 1, 2, 5]) if random.random() < 0.3 else 3600
        store = _Unsteady(self.store, manner, 0 if last else random.randrange(1, 40))
        end, self.state = run_virtual(
            self._live, store, 3600 if last else until, backend=self.backend, seed=self.seed
        )
        self.ends.append(end)
        self.store = self.store.copy()
        return end

    async def _live(self, store: _Unsteady, until: float) -> tuple[str, Any]:
        hook = RecordingHook()
        self.watch.begin(store)
        settings = dict(self.program.settings)
        hooks = [hook, self.watch, *settings.pop("hooks", ())]
        app = Application(self.program.graph, name="fuzz", store=store, hooks=hooks, **settings)
        async with no_leaks(threads=False, descriptors=False):
            end, state = "cancelled", None
            try:
                with anyio.move_on_after(until):
                    state = (await app.run(self.program.given, id="run")).state
                    end = "succeeded"
            except Exception as error:
                causes = list(leaves(error))
                if any(isinstance(cause, StoreFailed | CommitInDoubt) for cause in causes):
                    assert store.went_wrong
                    end = "stopped"
                elif all(isinstance(cause, EXPECTED) for cause in causes):
                    end = "failed"
                else:
                    raise
        hook.assert_paired()
        check_histories(self.store)
        store.check_released()
        return end, state

    def check(self, end: str) -> None:
        try:
            expected = self.program.model()
        except Unsure:
            return
        if end == "failed":
            assert expected is None, "it failed, and should not have"
        else:
            assert end == "succeeded"
            assert plain(self.state) == expected


def histories(store: MemoryStore) -> list[Any]:
    return [(path.id, kept.status, kept.record, kept.history) for path, kept in kept_runs(store)]


def fuzz(backend: Backend, seeds: Iterable[int]) -> None:
    ends = Counter[str]()
    for seed in seeds:
        case = Case(seed, backend)
        try:
            end = case.run()
            case.check(end)
        except BaseException as error:
            error.add_note(f"seed {seed} on {backend}, after {case.ends}")
            raise
        ends.update(case.ends)
    assert {"cancelled", "stopped", "succeeded", "failed"} <= set(ends), "they are too much alike"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_random_applications_go_on(backend: Backend):
    fuzz(backend, range(25))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_random_applications_go_on(backend: Backend, block: int):
    fuzz(backend, range(1000 * (block + 1), 1000 * (block + 1) + 500))


def test_the_model_is_of_use():
    """Of most programs it knows what they come to."""
    known = Counter[str]()
    for seed in range(60):
        try:
            known["fails" if Case(seed, "asyncio").program.model() is None else "succeeds"] += 1
        except (Unsure, ModelFails):
            known["unsure"] += 1
    assert known["succeeds"] > 20
    assert known["fails"] > 5
