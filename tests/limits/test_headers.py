"""What responses say of rates, and costs that are charged by their units."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import Application, Context, Limits, Rate, Runtime, SharedRate, State, action, fan_out
from shoal.errors import BadUse, DefinitionError
from shoal.rates import MemoryRates, RateHeaders, Remaining, read_headers
from shoal.testing import no_leaks

pytestmark = pytest.mark.anyio

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z

OPENAI = {
    "X-RateLimit-Limit-Requests": "60",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "6m0s",
}
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:50Z",
    "anthropic-ratelimit-input-tokens-remaining": "1000",
    "anthropic-ratelimit-input-tokens-reset": "2023-11-14T22:14:20+00:00",
    "retry-after": "7",
}


def test_openai():
    assert read_headers(OPENAI, NOW) == RateHeaders(
        None, (Remaining("requests", 59.0, 1.0), Remaining("tokens", 149984.0, 360.0))
    )


def test_anthropic():
    assert read_headers(ANTHROPIC, NOW) == RateHeaders(
        7.0, (Remaining("requests", 49.0, 30.0), Remaining("input-tokens", 1000.0, 60.0))
    )


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, RateHeaders()),
        ({"retry-after-ms": "250", "retry-after": "1"}, RateHeaders(0.25)),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:25 GMT"}, RateHeaders(5.0)),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:05 GMT"}, RateHeaders(0.0)),
        ({"retry-after": "soon"}, RateHeaders()),
        ({"x-ratelimit-remaining-tokens": "many"}, RateHeaders()),
        (
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(NOW + 9)},
            RateHeaders(None, (Remaining("requests", 0.0, 9.0, is_window=True),)),
        ),
        (
            {"ratelimit-remaining": "3", "ratelimit-reset": "9"},
            RateHeaders(None, (Remaining("requests", 3.0, 9.0, is_window=True),)),
        ),
        (
            {"x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-tokens": "20ms"},
            RateHeaders(None, (Remaining("tokens", 1.0, 0.02),)),
        ),
        (
            {"x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-tokens": "1h2m3.5s"},
            RateHeaders(None, (Remaining("tokens", 1.0, 3723.5),)),
        ),
    ],
)
def test_other_headers(headers: dict[str, str], said: RateHeaders):
    assert read_headers(headers, NOW) == said


@given(
    st.dictionaries(
        st.sampled_from([*OPENAI, *ANTHROPIC, "x-ratelimit-remaining", "x-ratelimit-reset"]),
        st.text("0123456789hms.:TZ+- Nov²", max_size=12) | st.just("9" * 400),
    )
)
def test_no_header_makes_it_raise(headers: dict[str, str]):
    said = read_headers(headers, NOW)
    assert said.retry_after is None or said.retry_after >= 0
    assert all(one.units >= 0 for one in said.remaining)


def test_what_are_no_headers():
    with pytest.raises(BadUse, match="the headers of a response are a mapping"):
        read_headers("x-ratelimit-remaining: 3")  # pyright: ignore[reportArgumentType]


def asking(limits: Limits, *headers: dict[str, str], costs: Any = None) -> Any:
    """A map over questions whose first answers come with these headers; returns starts too."""
    starts: list[float] = []

    @action(reads=["n"], writes=["answer"], limits=limits)
    async def ask(n: int, context: Context) -> int:
        starts.append(anyio.current_time())
        if len(starts) <= len(headers):
            context.learn(headers[len(starts) - 1])
        return n

    return fan_out(ask, over="ns", item="n", into="answers", limits=Limits(1)), starts


async def starts_of(limits: Limits, *headers: dict[str, str], n: int = 4) -> list[float]:
    step, starts = asking(limits, *headers)
    async with no_leaks():
        await Application(step).run({"ns": range(n)})
    return starts


async def test_a_rate_passes_no_more_than_the_server_has_left():
    rate = Rate(1, burst=10)
    assert await starts_of(Limits(rate=rate)) == pytest.approx([0, 0, 0, 0])
    # Another program has used the account: two are left now, and one more comes each second.
    begun = anyio.current_time()
    starts = await starts_of(Limits(rate=rate), {"x-ratelimit-remaining-requests": "2"})
    assert [at - begun for at in starts] == pytest.approx([0, 0, 0, 1])


async def test_a_server_that_has_more_left_changes_nothing():
    starts = await starts_of(Limits(rate=Rate(1)), {"x-ratelimit-remaining-requests": "900"})
    assert starts == pytest.approx([0, 1, 2, 3])


async def test_a_reset_bounds_what_is_learned():
    said = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "500ms"}
    starts = await starts_of(Limits(rate=Rate(0.1, burst=10)), said)
    assert starts == pytest.approx([0, 0, 0, 0])  # ten in all, and two units of time lack


async def test_a_window_that_is_used_up_pauses_the_rate():
    said = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}
    starts = await starts_of(Limits(rate=Rate(10, burst=10)), said)
    assert starts == pytest.approx([0, 30, 30, 30])


async def test_retry_after_pauses_all_rates_of_the_attempt():
    starts = await starts_of(
        Limits(rate=Rate(10, burst=10)) & Limits(rate=Rate(99)), {"retry-after": "5"}, n=2
    )
    assert starts == pytest.approx([0, 5])


async def test_a_shared_rate_learns_when_to_pause():
    rate = SharedRate(Rate(100, burst=10), "api", MemoryRates())
    said = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "4s"}
    starts = await starts_of(Limits(rate=rate), said, n=2)
    assert starts[1] - starts[0] == pytest.approx(4, abs=0.1)


async def test_without_a_rate_headers_are_ignored():
    assert await starts_of(Limits(2), OPENAI, {"retry-after": "9"}) == pytest.approx([0] * 4)


async def test_headers_reach_the_rates_of_the_fan_outs_around():
    starts: list[float] = []

    @action(reads=["n"], writes=["answer"])
    async def ask(n: int, context: Context) -> int:
        starts.append(anyio.current_time())
        context.learn({"retry-after": "3"})
        return n

    limits = Limits(1, rate=Rate(10, burst=10))
    step = fan_out(ask, over="ns", item="n", into="answers", limits=limits)
    await Application(step).run({"ns": range(3)})
    assert starts == pytest.approx([0, 3, 6])


# -- charging by unit ------------------------------------------------------------------------------

BOTH = Limits(rate=Rate(100, burst=1000), cost=lambda _: 500, unit="tokens") & Limits(
    rate=Rate(1, burst=10), cost=lambda _: 5, unit="USD"
)


async def charged(limits: Limits, *charges: tuple[float, str | None]) -> list[float | None]:
    @action(reads=["n"], writes=["answer"], limits=limits)
    async def ask(n: int, context: Context) -> int:
        for actual, unit in charges:
            if unit is None:
                context.charge(actual)
            else:
                context.charge(actual, unit=unit)
        return n

    async with no_leaks(), Runtime() as runtime:
        await runtime.run(Application(ask), {"n": 1})
        limiter = runtime.limiter(ask)
        return [limiter.charged(gates.part) for gates in limiter.parts]


async def test_each_cost_is_charged_by_its_unit():
    assert await charged(BOTH) == [500, 5]
    assert await charged(BOTH, (70, "tokens")) == [70, 5]
    assert await charged(BOTH, (70, "tokens"), (0.25, "USD")) == [70, 0.25]
    assert await charged(BOTH, (70, "tokens"), (80, "tokens")) == [80, 5]


async def test_a_limit_that_nothing_has_passed_has_charged_nothing():
    @action(reads=["n"], writes=["answer"], limits=BOTH)
    async def ask(n: int) -> int:
        return n

    async with Runtime() as runtime:
        limiter = runtime.limiter(ask)
        assert [limiter.charged(gates.part) for gates in limiter.parts] == [0, 0]


async def test_a_unit_that_nothing_limits_is_ignored():
    assert await charged(BOTH, (3, "pages")) == [500, 5]
    assert await charged(Limits(2), (3, "pages"), (3, None)) == [None]


async def test_the_only_cost_needs_no_name():
    one = Limits(rate=Rate(1, burst=10), cost=lambda _: 5, unit="USD")
    assert await charged(one & Limits(3), (2, None)) == [2, None]


async def test_several_costs_need_a_name():
    with pytest.raises(BadUse, match=r"several costs apply: 'USD', 'tokens'; give its name"):
        await charged(BOTH, (3, None))


async def test_a_misspelled_unit_is_refused():
    with pytest.raises(BadUse, match="the costs that apply are in 'USD', 'tokens'"):
        await charged(BOTH, (3, "usd"))


def one(state: State) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("unit", "cost", "says"),
    [
        ("USD", None, "names what cost= counts; give cost="),
        ("", one, "takes a name, such as 'tokens'"),
        (3, one, "takes a name, such as 'tokens', not 3"),
    ],
)
def test_units_that_are_none(unit: Any, cost: Any, says: str):
    with pytest.raises(DefinitionError, match=says):
        Limits(rate=Rate(1), cost=cost, unit=unit)
