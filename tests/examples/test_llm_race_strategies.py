"""Races of scripted models, under virtual time: who wins, who is cancelled, what it costs."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from examples.llm_race import (
    Chunk,
    Prompt,
    Provider,
    ProviderError,
    Report,
    Rules,
    Terms,
    Usage,
    acceptance,
    ask,
    budget_of,
)
from examples.llm_race.client.exchange import Transcript
from examples.llm_race.client.failures import kind_of
from examples.llm_race.race.racing import Race, scoreboard
from examples.llm_race.race.strategies import STRATEGIES, strategy
from shoal import Hedge, Runtime, SQLiteStore, StepTimeout
from shoal.testing import no_leaks
from tests.examples.rivals import NO_CLIENT, Rival, hold, lanes

pytestmark = pytest.mark.anyio


def overloaded(after: float | None) -> ProviderError:
    return ProviderError("overload", "429 slow down", status=429, retry_after=after, retryable=True)


def broken(status: int = 500) -> ProviderError:
    return ProviderError("http", f"{status} oops", status=status, retryable=status >= 500)


async def test_the_first_answer_wins_and_the_others_are_cancelled_and_closed():
    slow, quick = Rival("slow", ttft=5), Rival("quick", text="me first")
    async with no_leaks():
        report = await hold([slow, quick])
    assert report.answer is not None
    assert (report.answer.text, report.answer.provider) == ("me first", "quick")
    assert lanes(report) == {"slow": "cancelled", "quick": "won"}
    assert slow.closed == quick.closed == 1
    assert report.ttft == pytest.approx(1.0)
    assert anyio.current_time() == pytest.approx(1.2)


async def test_the_first_token_decides_and_its_giver_streams_on():
    early = Rival("early", text="a b c d", ttft=1, pace=2)
    soon = Rival("soon", text="done", ttft=2)  # done long before the other, and cancelled by then
    report = await hold([soon, early], strategy="first-token")
    assert report.answer is not None
    assert report.answer.text == "a b c d"
    assert lanes(report) == {"soon": "cancelled", "early": "won"}


async def test_a_keep_alive_is_no_token():
    async def alive(prompt: str) -> AsyncIterator[Chunk]:
        for _ in range(50):
            await anyio.sleep(0.1)
            yield Chunk()
        yield Chunk(text="late", finish="stop")

    report = await hold([Provider.of(alive), Rival("talker", ttft=3)], strategy="first-token")
    assert lanes(report) == {"alive": "cancelled", "talker": "won"}


async def test_a_stream_of_keep_alives_is_too_slow():
    async def alive(prompt: str) -> AsyncIterator[Chunk]:
        while True:
            await anyio.sleep(0.1)
            yield Chunk()

    report = await hold([Provider.of(alive)], terms=Terms(ttft_timeout=2, attempts=1))
    assert report.answer is None
    assert report.lanes[0].detail == "no text within 2 s"
    assert anyio.current_time() == pytest.approx(2.0, abs=0.11)


async def test_a_stream_that_falls_silent_has_failed():
    rival = Rival("mute", text="one two", pace=9)
    report = await hold([rival], terms=Terms(stall_timeout=4, attempts=1))
    assert report.lanes[0].detail == "no more text for 4 s"
    assert anyio.current_time() == pytest.approx(5.0)


async def test_a_fixed_hedge_asks_the_next_only_when_the_first_is_late():
    first, second = Rival("first", ttft=3), Rival("second", ttft=1)
    report = await hold([first, second], strategy="hedge", hedge=0.5)
    assert lanes(report) == {"first": "cancelled", "second": "won"}
    assert second.asked_at == [0.5]
    first, second = Rival("first", ttft=0.1, text="a"), Rival("second")
    report = await hold([first, second], strategy="hedge", hedge=0.5)
    assert lanes(report) == {"first": "won", "second": "not started"}
    assert second.asked_at == []


async def test_a_hedge_learns_when_late_is():
    quick, other = Rival("quick", ttft=0.2, text="a"), Rival("other", ttft=0.2, text="b")
    providers = [quick.provider(), other.provider()]
    rules = Rules(strategy="hedge", hedge=Hedge(percentile=90, budget=1, initial=math.inf))
    race = Race(providers, rules)
    async with Runtime(seed=1) as runtime:
        for _ in range(30):
            await race.hold(Prompt(text="?"), runtime, NO_CLIENT)
        assert other.asked_at == []
        quick.ttft = 5
        asked_at = anyio.current_time()
        report = await race.hold(Prompt(text="?"), runtime, NO_CLIENT)
    assert other.asked_at == [pytest.approx(asked_at + 0.3)]
    assert lanes(report) == {"quick": "cancelled", "other": "won"}


async def test_a_fallback_is_asked_when_the_one_before_has_failed():
    gone = Rival("gone", fails=[broken(404)])
    report = await hold([gone, Rival("next"), Rival("last")], strategy="fallback")
    assert lanes(report) == {"gone": "failed", "next": "won", "last": "not started"}
    assert gone.closed == 1, "a 404 is not tried again"


async def test_a_fallback_does_not_wait_for_a_provider_that_asks_for_a_long_pause():
    busy = Rival("busy", fails=[overloaded(30)])
    report = await hold([busy, Rival("next")], strategy="fallback")
    assert lanes(report) == {"busy": "failed", "next": "won"}
    assert anyio.current_time() < 3


async def test_the_cheapest_is_asked_first_and_the_unknown_last():
    dear = Rival("dear", limits={"price_in": 9, "price_out": 9})
    cheap = Rival("cheap", limits={"price_in": 1, "price_out": 1}, fails=[broken(401)])
    unknown = Rival("unknown", limits={"price_in": None, "price_out": None})
    report = await hold([dear, unknown, cheap], strategy="cheapest", hedge=60)
    assert lanes(report) == {"dear": "won", "unknown": "not started", "cheap": "failed"}
    assert cheap.asked_at == [0.0]


async def test_the_heaviest_is_asked_first():
    light, heavy = Rival("light"), Rival("heavy", limits={"weight": 2.0})
    report = await hold([light, heavy], strategy="fallback")
    assert lanes(report) == {"light": "not started", "heavy": "won"}


@pytest.mark.parametrize(
    ("normalize", "texts"),
    [("text", ["Yes.", "no", " yes"]), ("json", ['{"a": 1, "b": 2}', "1", '{"b":2,"a":1}'])],
)
async def test_a_quorum_agrees_on_what_is_meant(normalize: Any, texts: list[str]):
    rivals = [Rival(f"r{n}", text=text, ttft=n + 1) for n, text in enumerate(texts)]
    report = await hold([*rivals, Rival("late", ttft=9)], strategy="quorum", normalize=normalize)
    assert report.answer is not None
    assert report.answer.provider == "r0"
    assert lanes(report) == {"r0": "won", "r1": "answered", "r2": "answered", "late": "cancelled"}


async def test_without_a_quorum_there_is_no_answer():
    report = await hold([Rival("a", text="1"), Rival("b", text="2")], strategy="quorum")
    assert report.answer is None
    assert "no 2 of its 2 children agree" in str(report.error)


async def test_all_are_asked_and_acceptable_answers_kept():
    rivals = [
        Rival("a", text="long enough"),
        Rival("b", text="no"),
        Rival("c", fails=[broken(400)]),
    ]
    report = await hold(rivals, strategy="all", accept=acceptance(min_chars=5))
    assert list(report.answers) == ["a"]
    assert lanes(report) == {"a": "answered", "b": "answered", "c": "failed"}
    report = await hold([Rival("b", text="no")], strategy="all", accept=acceptance(min_chars=5))
    assert report.answer is None


async def test_a_slow_provider_does_not_cost_the_other_answers():
    report = await hold([Rival("a"), Rival("late", ttft=9)], strategy="all", timeout=5.0)
    assert list(report.answers) == ["a"]
    assert lanes(report) == {"a": "answered", "late": "failed"}
    report = await hold([Rival("c", fails=[broken(400)])], strategy="all")
    assert report.answer is None
    assert report.totals()["error"] == "400 oops"


async def test_a_judge_that_competes_has_one_set_of_limits():
    both = Rival("both", text="1", limits={"rpm": 60})
    report = await hold([both, Rival("other")], strategy="judge", judge=both.provider())
    assert lanes(report) == {"both": "won", "other": "answered", "judge": "answered"}
    first, second = both.asked_at
    assert second - first >= 1.0
    assert second == pytest.approx(max(1.0, 1.3), abs=0.01), "as soon as both had answered"


async def test_a_judge_chooses_without_knowing_whose_answers_they_are():
    judge = Rival("umpire", text="The best is 2.")
    rivals = [Rival("alice", text="first thing"), Rival("bob", text="second thing")]
    report = await hold(rivals, strategy="judge", judge=judge.provider())
    assert report.answer is not None
    assert (report.answer.text, report.answer.provider) == ("second thing", "bob")
    assert lanes(report) == {"alice": "answered", "bob": "won", "judge": "answered"}
    [ballot] = judge.prompts
    assert "why?" in ballot
    assert "# 2\nsecond thing" in ballot
    assert "alice" not in ballot
    assert report.cost == pytest.approx(3 * (10 * 1 + 20 * 10) / 1e6)


async def test_a_judge_that_names_no_answer_gives_none():
    judge = Rival("umpire", text="42")
    report = await hold([Rival("a")], strategy="judge", judge=judge.provider())
    assert report.answer is None
    assert "names none of 1 answers" in report.totals()["error"]


async def test_a_refused_provider_leaves_the_race_with_the_reason():
    short, right = Rival("short", text="no"), Rival("right", text="yes, indeed", ttft=3)
    report = await hold([short, right], accept=acceptance(min_chars=5))
    assert lanes(report) == {"short": "rejected", "right": "won"}
    assert report.lanes[0].detail == "only 2 characters long, not 5"
    report = await hold([Rival("short", text="no")], accept=acceptance(min_chars=5))
    assert report.answer is None
    assert report.totals()["error"] == "short: only 2 characters long, not 5"


async def test_a_race_that_takes_too_long_is_over():
    report = await hold([Rival("a", ttft=9), Rival("b", ttft=9)], timeout=3.0)
    assert isinstance(report.error, StepTimeout)
    assert lanes(report) == {"a": "cancelled", "b": "cancelled"}
    assert anyio.current_time() == 3.0


# -- trying again ------------------------------------------------------------------------------


async def test_what_may_go_well_is_tried_once_more_and_a_refusal_costs_nothing():
    rival = Rival("shaky", fails=[broken(503)])
    report = await hold([rival])
    [lane] = report.lanes
    assert (lane.status, lane.attempts) == ("won", 2)
    assert lane.usage.tokens == 30
    assert lane.usage.is_reported


async def test_a_provider_that_names_a_time_is_asked_then_and_not_before():
    rival = Rival("busy", ttft=1, fails=[overloaded(7), overloaded(2)], limits={"rpm": 6000})
    report = await hold([rival])
    assert lanes(report) == {"busy": "won"}
    assert rival.asked_at == [0.0, pytest.approx(8.0), pytest.approx(11.0)]
    assert report.lanes[0].usage.is_reported, "what was put off has used nothing"


async def test_a_pause_is_everybody_s():
    rival = Rival("busy", ttft=1, fails=[overloaded(7)])
    provider = rival.provider()
    race = Race([provider], Rules())
    async with Runtime(seed=1) as runtime, anyio.create_task_group() as tasks:

        async def later() -> None:
            await anyio.sleep(2)
            await race.hold(Prompt(text="again"), runtime, NO_CLIENT)

        tasks.start_soon(later)
        await race.hold(Prompt(text="once"), runtime, NO_CLIENT)
    assert min(rival.asked_at[1:]) >= 8.0


async def test_a_provider_that_asks_for_too_long_a_pause_is_not_asked_before_its_end():
    busy, other = Rival("busy", ttft=1, fails=[overloaded(30)]), Rival("other", ttft=1)
    race = Race([busy.provider(), other.provider()], Rules(strategy="fallback", cool_down=1))
    async with Runtime(seed=1) as runtime:
        winners: list[str] = []
        while len(busy.asked_at) < 2:
            report = await race.hold(Prompt(text="?"), runtime, NO_CLIENT)
            winners += [name for name, status in lanes(report).items() if status == "won"]
    assert busy.asked_at[1] >= 31.0
    assert set(winners[:-1]) == {"other"}
    assert winners[-1] == "busy"


async def test_an_answer_ends_a_provider_s_wish_to_be_left_alone():
    busy = Rival("busy", ttft=0, fails=[overloaded(1), None, overloaded(1)])
    race = Race([busy.provider(), Rival("other").provider()], Rules(strategy="fallback"))
    async with Runtime(seed=1) as runtime:
        for _ in range(2):
            report = await race.hold(Prompt(text="?"), runtime, NO_CLIENT)
            assert lanes(report) == {"busy": "won", "other": "not started"}


@pytest.mark.parametrize(("timeout", "times"), [(8.0, 8), (60.0, 10)])
async def test_a_provider_that_always_asks_for_a_pause_is_asked_as_long_as_there_is_time(
    timeout: float, times: int
):
    rival = Rival("busy", ttft=0, fails=[overloaded(1)] * 99)
    report = await hold([rival], timeout=timeout)
    assert report.answer is None
    assert rival.asked_at == [pytest.approx(float(n)) for n in range(times)]


async def test_a_judge_is_asked_also_if_a_process_before_had_the_answers(tmp_path: Path):
    judge, rivals = Rival("umpire", text="2", ttft=1), [Rival("a"), Rival("b", text="better")]
    rules = Rules(strategy="judge", judge=judge.provider())

    async def attempt() -> Report:
        store = SQLiteStore(tmp_path / "runs.db")
        race = Race([one.provider() for one in rivals], rules, store=store)
        async with Runtime(seed=1) as runtime:
            return await race.hold(Prompt(text="?"), runtime, NO_CLIENT, "id")

    with anyio.move_on_after(2.0):  # while the judge ponders
        await attempt()
    totals = (await attempt()).totals()
    assert (totals["winner"], totals["cost_usd"], totals["tokens"]) == ("b", None, None)
    assert [len(one.asked_at) for one in (*rivals, judge)] == [1, 1, 2]


async def test_nobody_waits_for_a_provider_beyond_the_race():
    report = await hold([Rival("busy", fails=[overloaded(100)])], timeout=50.0)
    assert report.lanes[0].status == "failed"
    assert anyio.current_time() == 1.0


async def test_only_a_provider_that_keeps_failing_is_passed_over():
    bad, good = Rival("bad", ttft=0.1, fails=[broken(401)] * 9), Rival("good")
    providers = [bad.provider(), good.provider()]
    rules = Rules(failures=2, cool_down=30)
    race = Race(providers, rules)
    async with Runtime(seed=1) as runtime:
        reports = [await race.hold(Prompt(text="?"), runtime, NO_CLIENT) for _ in range(3)]
        assert [lanes(report)["bad"] for report in reports] == ["failed", "failed", "skipped"]
        assert all(report.answer is not None for report in reports)
        await anyio.sleep(30)
        await race.hold(Prompt(text="?"), runtime, NO_CLIENT)
    assert len(bad.asked_at) == 3


# -- broken streams ----------------------------------------------------------------------------


async def test_a_truncated_stream_is_a_failure():
    rival = Rival("torn", text="half of it", breaks=[2, 2])
    report = await hold([rival])
    assert report.answer is None
    assert report.lanes[0].detail == "the stream ended before the answer was complete"
    assert rival.closed == 2, "it was asked once more"


async def test_a_truncated_stream_is_asked_again():
    report = await hold([Rival("torn", text="half of it", breaks=[2])])
    assert report.answer is not None
    assert report.answer.text == "half of it"


async def test_a_winner_that_breaks_off_fails_the_race_or_starts_it_anew():
    torn, other = Rival("torn", breaks=[1, 1, 1]), Rival("other", ttft=5)
    report = await hold([torn, other], strategy="first-token")
    assert report.answer is None
    assert torn.closed == 1, "not asked again: its first words were final"
    torn, other = Rival("torn", breaks=[1, 1, 1]), Rival("other", ttft=5)
    report = await hold([torn, other], strategy="first-token", on_broken_stream="restart")
    assert lanes(report) == {"torn": "failed", "other": "won"}
    assert torn.closed == 2


async def test_an_answer_without_a_word_is_none():
    report = await hold([Rival("empty", text="")])
    assert report.lanes[0].detail == "no text at all; it ended with 'stop'"


async def test_a_plain_stream_of_text_is_whole_when_it_ends():
    async def plain(prompt: str) -> AsyncIterator[str]:
        yield f"{prompt} "
        yield "because"

    async def promised(prompt: str) -> AsyncIterator[str]:
        return plain(prompt)

    for function in (plain, promised):
        report = await ask("why?", [Provider.of(function)], client=NO_CLIENT)
        assert report.answer is not None
        assert report.answer.text == "why? because"
        assert not report.lanes[0].usage.is_reported


class SdkStream:
    """As SDKs give: to iterate over, and closed by another name than generators are."""

    def __init__(self) -> None:
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        await anyio.sleep(1)
        return "more "

    async def close(self) -> None:
        self.is_closed = True


async def test_the_stream_of_an_sdk_is_closed_when_it_loses():
    stream = SdkStream()

    async def endless(prompt: str) -> SdkStream:
        return stream

    report = await hold([Provider.of(endless), Rival("r", ttft=3)])
    assert lanes(report) == {"endless": "cancelled", "r": "won"}
    assert stream.is_closed


def test_what_is_reported_on_the_way_is_no_report():
    transcript = Transcript(Prompt(text="why?"))
    transcript.add(Chunk(text="because of", input_tokens=9, output_tokens=1))
    assert transcript.usage == Usage(input_tokens=9, output_tokens=3, is_reported=False)
    transcript.add(Chunk(finish="stop", output_tokens=5))
    assert transcript.usage == Usage(input_tokens=9, output_tokens=5)


async def test_only_acceptable_answers_make_a_quorum():
    rivals = [Rival("a", text="no"), Rival("b", text="no"), Rival("c", text="yes!", ttft=3)]
    rivals.append(Rival("d", text="yes!", ttft=4))
    report = await hold(rivals, strategy="quorum", accept=acceptance(min_chars=3))
    assert report.answer is not None
    assert report.answer.text == "yes!"


# -- limits, usage, money ----------------------------------------------------------------------


async def test_losers_have_used_something_too():
    slow = Rival("slow", text="one two three four", ttft=0.5, pace=0.4)
    report = await hold([slow, Rival("quick", ttft=1)])
    loser, winner = report.lanes
    assert (loser.status, winner.status) == ("cancelled", "won")
    assert (winner.usage.is_reported, winner.usage.tokens) == (True, 30)
    assert not loser.usage.is_reported
    assert loser.usage.input_tokens == 10, "as reported before it was cancelled"
    assert loser.usage.output_tokens == 4, "as estimated from what it had said"
    assert report.totals()["usage"] == "estimated"
    assert report.cost == pytest.approx((10 + 20 * 10 + 10 + 4 * 10) / 1e6)


async def hold_many(provider: Provider, count: int) -> list[float]:
    """Hold races at once, and say when each had ended."""
    race, ended = Race([provider], Rules(timeout=1000)), list[float]()
    async with Runtime(seed=1) as runtime, anyio.create_task_group() as tasks:

        async def one() -> None:
            await race.hold(Prompt(text="?", max_tokens=100), runtime, NO_CLIENT)
            ended.append(anyio.current_time())

        for _ in range(count):
            tasks.start_soon(one)
    return sorted(ended)


async def test_requests_a_minute_are_kept_to():
    rival = Rival("r", limits={"rpm": 60})
    await hold_many(rival.provider(), 4)
    assert rival.asked_at == pytest.approx([0, 1, 2, 3], abs=0.02)


async def test_tokens_a_minute_are_kept_to_and_corrected_by_what_was_used():
    # Each is expected to take 101 tokens and takes 30: so a second one needn't wait for a minute.
    rival = Rival("r", limits={"tpm": 120})
    await hold_many(rival.provider(), 3)
    second, third = rival.asked_at[1:]
    assert second == pytest.approx(6.0, abs=3.0)
    assert third < 35.0, "as if each had taken 101, it would be after 80 s"
    rival = Rival("r", limits={"tpm": 120}, reported=(60, 60))
    await hold_many(rival.provider(), 2)
    assert rival.asked_at[1] > 45.0, "more was used than expected, and that was charged"


async def test_requests_at_once_are_kept_to():
    rival = Rival("r", text="x", ttft=1, pace=0, limits={"max_concurrency": 2})
    assert await hold_many(rival.provider(), 4) == pytest.approx([1, 1, 2, 2])


async def test_no_more_is_spent_than_there_is():
    budget = budget_of(0.0012)  # one answer may cost 0.001001 and costs 0.00021
    rivals = [Rival("a"), Rival("b")]
    race = Race([rival.provider() for rival in rivals], Rules(), budget=budget)
    prompt = Prompt(text="why?", max_tokens=100)
    async with Runtime(seed=1, limits=budget) as runtime:
        report = await race.hold(prompt, runtime, NO_CLIENT)
        assert lanes(report) == {"a": "won", "b": "cancelled"}
        assert rivals[1].asked_at == [], "it has waited for what the other one may cost"
        [money] = runtime.limiter().statistics()
        assert money.spent == pytest.approx(0.00021)
        report = await race.hold(prompt, runtime, NO_CLIENT)
        assert lanes(report) == {"a": "failed", "b": "failed"}
        assert "0.00099 of 0.0012 is left" in report.lanes[1].detail
        assert kind_of(report.lanes[1].error or OSError()) == "budget"
    report = await hold([Rival("a", limits={"price_in": None, "price_out": None})], budget=budget)
    assert "the price of a-1 is unknown" in report.lanes[0].detail


async def test_a_loser_is_paid_for_out_of_the_budget():
    budget = budget_of(1.0)
    rivals = [Rival("a"), Rival("b", ttft=9), Rival("c", fails=[broken(400)])]
    race = Race([rival.provider() for rival in rivals], Rules(), budget=budget)
    async with Runtime(seed=1, limits=budget) as runtime:
        await race.hold(Prompt(text="why?", max_tokens=100), runtime, NO_CLIENT)
        [money] = runtime.limiter().statistics()
        assert money.spent == pytest.approx(0.00021 + 1e-6), "and what is refused costs nothing"


# -- rules that make no sense ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (Rules(strategy="quorum", k=3), "can't give 3 answers"),
        (Rules(strategy="judge"), "needs a provider that judges"),
        (Rules(strategy="first-token", accept=acceptance(min_chars=1)), "decides before"),
    ],
)
async def test_rules_that_cannot_be_kept_are_refused(rules: Rules, why: str):
    with pytest.raises(ValueError, match=why):
        strategy([Rival("a").provider(), Rival("b").provider()], rules)
    with pytest.raises(ValueError, match="needs at least one provider"):
        strategy([], Rules())


@pytest.mark.parametrize("name", STRATEGIES)
async def test_a_cancelled_race_leaves_nothing_and_knows_what_was_used(name: Any):
    rivals = [Rival("a", ttft=1, pace=5), Rival("b", ttft=1.5, pace=5)]
    providers = [rival.provider() for rival in rivals]
    rules = Rules(strategy=name, judge=providers[0], hedge=0.2)
    board = scoreboard(providers, rules)
    race = Race(providers, rules, board=board)
    async with no_leaks():
        with anyio.move_on_after(2.5):
            async with Runtime(seed=1) as runtime:
                await race.hold(Prompt(text="why?"), runtime, NO_CLIENT)
    assert [rival.closed for rival in rivals] == [len(rival.asked_at) for rival in rivals]
    [run] = board.races
    used = {lane.name: lane.usage.tokens for lane in board.take(run, None)}
    assert used["a"] > 0
