"""Bugs that hypothesis finds: one state machine for the three applications.

The machine is what stands outside of a run. A rule lets calls of services answer, at once or one
after the other, refuses them, or loses their answers; another one lets time pass; another one ends
the process, and begins the next. In the end everything answers, and `check` of the module judges
the run, as in `simulate`.

Time is virtual, which spares the test the waits; `Machine.waited` adds them up.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, Runner, Task
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from shoal import Application
from shoal.testing import VirtualTimeLoop

from . import crawl, search, shop

T = TypeVar("T")

PATIENCE = 200  # rounds in which everything answers, until the run is taken for one that hangs
SOME = st.lists(st.integers(0, 3), min_size=1, max_size=3)  # of the calls that wait


class World:
    """The calls that wait for their answers, each with its effect."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[bool], Callable[[], object]]] = []

    async def call(self, effect: Callable[[], T]) -> T:
        """Wait until a rule decides: True answers, and False loses the answer."""
        future: Future[bool] = asyncio.get_running_loop().create_future()
        one = (future, effect)
        self.waiting.append(one)
        try:
            is_heard = await future
        finally:
            self.waiting.remove(one)
        value = effect()
        if not is_heard:
            raise ConnectionError("the connection was closed")
        return value

    def some(self, which: list[int]) -> list[Future[bool]]:
        """Return calls that have no answer, by their places."""
        pending = [future for future, _ in self.waiting if not future.done()]
        return [pending[one] for one in sorted(set(which)) if one < len(pending)]


class Bank(shop.Bank):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    async def charge(self, order: str, key: str) -> str:
        await self.world.call(lambda: self.charges.setdefault(key, order))
        return f"receipt for {order}"


class Engine(search.Engine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        search.ENGINES.append(self)  # what it leaves open is closed after the test

    async def ask(self, name: str, seconds: float, *, gives_back: bool) -> str:
        await self.world.call(lambda: None)
        return await super().ask(name, 0, gives_back=gives_back)


class Site(crawl.Site):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    async def fetch(self, page: str) -> str:
        self.calls.append(asyncio.get_running_loop().time())
        return await self.world.call(lambda: f"page {page}")


def inputs_of(module: ModuleType, world: World) -> dict[str, Any]:
    if module is shop:
        return {"bank": Bank(world), "stock": shop.Stock()}
    return {"engine": Engine(world)} if module is search else {"site": Site(world)}


class Ended:
    """What ``check`` of a module is given: see `SimulatedRun`."""

    def __init__(self, inputs: dict[str, Any], lives: int, state: Any) -> None:
        self.inputs, self.lives, self.state = inputs, range(lives), state
        self.faults = ()


class Machine(RuleBasedStateMachine):
    """One run, and all that happens to it from outside."""

    module: ClassVar[ModuleType]
    bug: ClassVar[str]
    waited: ClassVar[float]
    examples: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.runner = Runner(loop_factory=VirtualTimeLoop)
        self.world = World()
        self.inputs = inputs_of(self.module, self.world)
        self.app: Application[Any] = self.module.application(self.bug)
        self.state: dict[str, Any] = self.module.STATE
        self.lives = 0
        self.task: Task[Any] | None = None

    @initialize(pages=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True))
    def begins(self, pages: list[str]) -> None:
        if self.module is crawl:
            self.state = {"pages": pages}
        self.runner.run(self.live())

    async def live(self) -> None:
        self.lives += 1
        run = self.app.run(self.state, id="r", inputs=self.inputs)
        self.task = asyncio.create_task(run)
        await self.pass_time(0.01)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.task is not None and self.task.done() and self.task.exception() is not None:
            await self.live()  # what has failed is resumed

    @rule(which=SOME)
    def answer(self, which: list[int]) -> None:
        for one in self.world.some(which):
            one.set_result(True)
        self.runner.run(self.pass_time(0.01))

    @rule(which=SOME)
    def lose_the_answer(self, which: list[int]) -> None:
        for one in self.world.some(which):
            one.set_result(False)
        self.runner.run(self.pass_time(0.01))

    @rule(which=SOME)
    def refuse(self, which: list[int]) -> None:
        for one in self.world.some(which):
            one.set_exception(ConnectionError("busy"))
        self.runner.run(self.pass_time(0.01))

    @rule(seconds=st.sampled_from([0.5, 1, 2, 40]))
    def time_passes(self, seconds: float) -> None:
        self.runner.run(self.pass_time(seconds))

    @rule()
    def the_process_ends(self) -> None:
        async def end() -> None:
            assert self.task is not None
            if not self.task.done():
                self.task.cancel()
                await asyncio.wait([self.task])
                await self.live()

        self.runner.run(end())

    def teardown(self) -> None:
        """Let everything answer until the run has succeeded, and judge it."""

        async def succeed() -> Any:
            for _ in range(PATIENCE):
                if self.task is not None and self.task.done() and not self.task.exception():
                    return self.task.result()
                for one in self.world.some([0, 1, 2, 3]):
                    one.set_result(True)
                await self.pass_time(0.5)
            raise AssertionError("the run hangs")

        if self.task is None:
            return
        try:
            result = self.runner.run(succeed())
            self.module.check(Ended(self.inputs, self.lives, result.state))
            if self.module is search:
                assert result.state["answer"] in ("here, says quick", "here, says thorough")
            if self.module is shop:
                filed: Any = result.state["filed"]  # the orders as they came, or their letters
                assert filed == 9 if isinstance(filed, int) else list(filed) == shop.STATE["orders"]
        finally:
            type(self).waited += self.runner.get_loop().time()
            type(self).examples += 1
            self.runner.close()


def try_it(module: ModuleType, bug: str, examples: int = 100) -> type[Machine]:
    """Run the machine with the defaults of hypothesis, and return it with what it has counted.

    Raises:
        AssertionError: It has found something.
    """
    given = {"module": module, "bug": bug, "waited": 0.0, "examples": 0}
    machine: type[Machine] = type("Machine", (Machine,), given)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # that it makes failures small is not the question
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    return machine
