"""`RateBackendConformance`: the tests that every backend of shared rates and budgets must pass."""

from __future__ import annotations

from random import Random
from typing import Any

import anyio

from shoal._engine.fanout.context import Context
from shoal._graph.action import action
from shoal._graph.fan_out import fan_out
from shoal._limits.budgets import Budget
from shoal._limits.limits import Limits, Rate, SharedRate
from shoal._limits.shared_budgets import BudgetBackend, BudgetRequest, BudgetState, reckon_budget
from shoal._limits.shared_rates import RateBackend, RateRequest, RateState, reckon
from shoal._runtime.application import Application

_ROUNDING = 1e-5  # seconds, and units: a backend may keep its numbers in another form


class RateBackendConformance:
    """Tests of all that a shared rate needs of a backend. Derive from it.

    For pytest, with anyio's plugin. Add a ``backend`` fixture::

        @pytest.mark.anyio
        class TestMyBackend(RateBackendConformance):
            @pytest.fixture
            def backend(self):
                with MyBackend(url) as backend:
                    yield backend

            def another(self, backend):
                return MyBackend(url)

    Each test needs a backend that knows none of the keys it uses: give it a prefix, or an empty
    server. Budgets are tested if the backend has ``spend``, and skipped otherwise. Test in your own
    tests what happens if the server fails, hangs or restarts.
    """

    units = 10
    """How many children the tests with applications start: each takes 10 ms by the rate."""

    def another(self, backend: RateBackend) -> RateBackend:
        """Return a backend that shares the rates of the given one; by default that one itself."""
        return backend

    async def test_requests_are_reckoned(self, backend: RateBackend) -> None:
        """The replies are always those of ``reckon`` by the backend's clock."""
        random = Random(1)  # noqa: S311 # not for secrets
        states: dict[str, RateState] = {}
        held: dict[str, list[tuple[float, float]]] = {"a": [], "b": [], "c": []}
        intervals = {"a": 0.003, "b": 0.1, "c": 7.7}
        bursts = {"a": 1.0, "b": 20.0, "c": 2.5}
        for _ in range(60):
            requests: list[RateRequest] = []
            for key in random.sample("abc", random.randint(1, 3)):
                back = [unit for unit in held[key] if random.random() < 0.5]
                requests.append(
                    RateRequest(
                        key=key,
                        interval=intervals[key],
                        burst=bursts[key],
                        extra=random.choice([0.0, 0.0, 0.0, 2.5, -1.5]),
                        returns=tuple(back),
                        costs=tuple(random.choices([1.0, 0.75, 0.25], k=random.randint(0, 4))),
                    )
                )
            replies = await backend.settle(requests)
            assert len(replies) == len(requests), "one reply for each request, in their order"
            for request, reply in zip(requests, replies, strict=True):
                state = states.get(request.key)
                # A state may be dropped once both of its times have passed.
                if state is not None and max(state.tat, state.last) < reply.now:
                    state = None
                states[request.key], expected = reckon(state, reply.now, request)
                assert len(reply.turns) == len(expected.turns), request
                for turn, other in zip(reply.turns, expected.turns, strict=True):
                    assert abs(turn - other) < _ROUNDING, request
                assert abs(reply.again_in - expected.again_in) < _ROUNDING, request
                held[request.key] = list(zip(reply.turns, request.costs, strict=False))
            await anyio.sleep(random.choice([0, 0, 0.004]))

    async def test_budgets_are_reckoned(self, backend: RateBackend) -> None:
        """The replies are always those of ``reckon_budget``."""
        budgets = _with_budgets(backend)
        for per in (None, 0.05):
            await self._spend_at_random(budgets, per)

    async def _spend_at_random(self, budgets: BudgetBackend, per: float | None) -> None:
        random = Random(1)  # noqa: S311 # not for secrets
        states: dict[str, BudgetState] = {}
        held: dict[str, float] = {f"{per} a": 0.0, f"{per} b": 0.0}
        for _ in range(60):
            requests: list[BudgetRequest] = []
            for key in random.sample(sorted(held), random.randint(1, 2)):
                state = states.get(key)
                requests.append(
                    BudgetRequest(
                        key=key,
                        amount=5.0,
                        per=per,
                        returned=round(held[key] * random.random(), 3),
                        since=None if state is None else state.since,
                        costs=tuple(random.choices([1.0, 0.75, 0.3], k=random.randint(0, 4))),
                    )
                )
            for request, reply in zip(requests, await budgets.spend(requests), strict=True):
                state = states.get(request.key)
                is_same = state is not None and state.since == reply.since
                assert is_same or per is not None or state is None, "there is one window for ever"
                kept = state if is_same else None
                states[request.key], expected = reckon_budget(kept, reply.since, request)
                assert abs(reply.used - expected.used) < _ROUNDING, request
                assert reply.granted == expected.granted, request
                granted = sum(request.costs[: reply.granted])
                before = held[request.key] - request.returned if is_same else 0.0
                held[request.key] = before + granted
            await anyio.sleep(random.choice([0, 0, 0.01]))

    async def test_runtimes_share_a_rate(self, backend: RateBackend) -> None:
        """In any window of t seconds, two runtimes together start ``t / interval + burst``."""
        starts: list[float] = []

        @action(reads=["n"], writes=["out"])
        async def start(n: int) -> int:
            starts.append(anyio.current_time())
            return n

        async def run(of: RateBackend) -> None:
            rate = SharedRate(Rate(1, per=0.01, burst=2), "conformance", of)
            step = fan_out(start, over="ns", item="n", into="out", limits=Limits(rate=rate))
            await Application(step).run({"ns": range(self.units // 2)})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, backend)
            tasks.start_soon(run, self.another(backend))
        starts.sort()
        late = 0.05  # seconds by which a busy machine is late, now and then
        for first, since in enumerate(starts):
            for last in range(first, len(starts)):
                allowed = (starts[last] - since + late) / 0.01 + 2
                assert last - first + 1 <= allowed, f"{last - first + 1} starts at once"

    async def test_runtimes_share_a_budget(self, backend: RateBackend) -> None:
        """Two runtimes spend no more than there is; what one doesn't need, the other one has."""
        budgets = _with_budgets(backend)
        done: list[int] = []

        @action(reads=["n"], writes=["out"])
        async def spend(n: int, context: Context) -> int:
            await anyio.sleep(0.002)
            context.charge(0.05, unit="USD")
            done.append(n)
            return n

        async def run(of: Any) -> None:
            budget = Budget(1.0, "USD", worst=0.1, name="conformance", per=600, backend=of)
            step = fan_out(spend, over="ns", item="n", into="out", on_error="ignore")
            await Application(step, limits=budget).run({"ns": range(15)})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, backend)
            tasks.start_soon(run, self.another(backend))
        request = BudgetRequest(key="conformance", amount=1.0, per=600)
        (reply,) = await budgets.spend([request])
        assert abs(reply.used - 0.05 * len(done)) < _ROUNDING
        assert 10 < len(done) <= 20


def _with_budgets(backend: RateBackend) -> BudgetBackend:
    """Return the backend if it keeps budgets; skip the test otherwise."""
    if isinstance(backend, BudgetBackend):
        return backend
    from unittest import SkipTest  # noqa: PLC0415 # programs that import this need no unittest

    msg = f"{type(backend).__name__} keeps no budgets"
    raise SkipTest(msg)
