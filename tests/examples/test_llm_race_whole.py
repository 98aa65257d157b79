"""Answers that are cut off or blank, and prompts that are refused: who wins, and who is blamed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from examples.llm_race import Answer, Chunk, Prompt, Provider, ProviderError, Rules, Usage
from examples.llm_race.batch import Batch
from examples.llm_race.client.exchange import finish_reason, what_lacks
from examples.llm_race.client.failures import (
    is_of_the_prompt,
    is_of_the_provider,
    kind_of_refusal,
    stream_error,
)
from examples.llm_race.race.acceptance import acceptance
from examples.llm_race.race.racing import Race
from examples.llm_race.race.strategies import Strategy
from shoal import Runtime
from shoal.testing import no_leaks
from tests.examples.rivals import NO_CLIENT, Rival, hold, lanes
from tests.examples.test_llm_race_serve import ASK, serving

pytestmark = pytest.mark.anyio

BAD = {
    "cut off": Rival("bad", "one two", finish="length"),
    "cut off, says another": Rival("bad", "one two", finish="MAX_TOKENS"),
    "filtered": Rival("bad", "one two", finish="content_filter"),
    "refused in the middle": Rival("bad", "one", finish="refusal"),
    "failed": Rival("bad", "one two", finish="error"),
}


async def blank(prompt: str) -> AsyncIterator[Chunk]:
    for text in ("", " ", "\n"):
        yield Chunk(text=text)
    yield Chunk(finish="stop")


def bad(kind: str) -> Rival | Provider:
    if kind == "blank":
        return Provider.of(blank, name="bad", weight=2.0)
    one = BAD[kind]
    return Rival("bad", one.text, finish=one.finish, ttft=0.1, limits={"weight": 2.0})


KINDS = [*BAD, "blank"]
ONE_WINS: list[Strategy] = ["first", "hedge", "fallback", "cheapest"]


@pytest.mark.parametrize("how", ONE_WINS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_whole_answer_beats_one_that_is_not(kind: str, how: Strategy):
    async with no_leaks():
        report = await hold([bad(kind), Rival("good", ttft=3)], strategy=how, hedge=0.5)
    assert report.winner == "good"
    ended = lanes(report)
    assert ended["bad"] == ("failed" if kind == "blank" else "rejected")
    if kind != "blank":
        assert "cut off" in report.lanes[0].detail


@pytest.mark.parametrize("kind", KINDS)
async def test_only_whole_answers_agree_or_are_judged(kind: str):
    rivals = [bad(kind), Rival("a", "one two", ttft=2), Rival("b", "one two", ttft=3)]
    report = await hold(rivals, strategy="quorum", k=2)
    assert report.answer is not None
    assert report.answer.provider != "bad"
    judge = Rival("judge", "1", finish="length")  # a number is all that is asked for
    report = await hold(rivals, strategy="judge", judge=judge.provider())
    assert "bad" not in report.answers
    assert report.winner in ("a", "b")
    report = await hold(rivals, strategy="all")
    assert set(report.answers) == {"a", "b"}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_leader_that_is_cut_off_is_replaced_where_it_can_be(kind: str):
    rivals = [bad(kind), Rival("good", ttft=3)]
    report = await hold(rivals, strategy="first-token", on_broken_stream="restart")
    assert report.winner == "good"
    report = await hold([bad(kind), Rival("good", ttft=3)], strategy="first-token")
    assert report.winner == ("good" if kind == "blank" else "bad")  # what was sent, was sent


@pytest.mark.parametrize("how", [*ONE_WINS, "all", "judge"])
async def test_where_no_whole_answer_comes_the_longest_part_is_better_than_nothing(how: Strategy):
    rivals = [
        Rival("short", "one", finish="length", limits={"weight": 2.0}),
        Rival("long", "one two three", finish="length"),
        Rival("broken", fails=[ProviderError("http", "500", status=500)] * 2),
    ]
    judge = Rival("judge", "2")
    report = await hold(rivals, strategy=how, judge=judge.provider(), hedge=0.5)
    assert report.error is None
    assert report.answer is not None
    if how != "all":
        assert (report.winner, report.answer.finish) == ("long", "length")
        assert lanes(report)["long"] == "won"


async def test_a_part_that_is_not_acceptable_is_none():
    rules = Rules(accept=acceptance(regex="four"))
    report = await hold([Rival("a", "one two", finish="length")], rules)
    assert report.answer is None
    assert report.error is not None
    report = await hold([Rival("a", "one four", finish="length")], rules)
    assert report.winner == "a"
    both = [Rival("a", "one", finish="length"), Rival("b", "one", finish="length")]
    report = await hold(both, strategy="quorum")
    assert report.answer is None


async def test_a_part_is_better_than_a_timeout():
    report = await hold([bad("cut off"), Rival("late", ttft=9)], timeout=5.0)
    assert report.winner == "bad"


async def test_a_limit_that_the_user_sets_is_no_reason_to_fail():
    prompt = Prompt(text="?", max_tokens=2, may_be_cut=True)
    rivals = [BAD["cut off"].provider(), Rival("good", ttft=3).provider()]
    async with Runtime() as runtime:
        report = await Race(rivals, Rules()).hold(prompt, runtime, NO_CLIENT)
    assert report.winner == "bad"
    limited = {**ASK, "max_tokens": 2}
    for body, winner, finish in ((ASK, "good", "stop"), (limited, "bad", "length")):
        async with serving(bad("cut off"), Rival("good", ttft=3)) as service:
            found = (await service.ask(body)).json()
        assert (found["race"]["winner"], found["choices"][0]["finish_reason"]) == (winner, finish)


def test_what_an_answer_lacks():
    prompt = Prompt(text="?")
    for said, reason in (
        ("stop", "stop"),
        ("end_turn", "stop"),
        ("whatever", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("error", "error"),
    ):
        assert finish_reason(said) == reason
        assert (what_lacks(prompt, said) == "") == (reason == "stop")


async def test_a_batch_keeps_what_was_cut_off(tmp_path: Path):
    out = tmp_path / "out.jsonl"
    for _ in range(2):
        batch = Batch(
            providers=[Rival("only", "one two", finish="length").provider()],
            rules=Rules(),
            prompts=[Prompt(text="?", id="a")],
            out=out,
            store=tmp_path / "batch.db",
        )
        rows = await batch.run()
        assert (rows.answered, rows.failed) == (1, 0)
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (row["answer"], row["finish"], row["error"]) == ("one two", "length", None)


# -- whose fault it is -----------------------------------------------------------------------------

OF_A_PROMPT: dict[str, Any] = {
    "wrong": ProviderError("http", "400 bad request", status=400),
    "too long": ProviderError("http", "400 maximum context length is 10 tokens", status=400),
    "too large": ProviderError("http", "413 too large", status=413),
    "refused": ProviderError("refused", "the model refuses"),
    "flagged, in the stream": stream_error({"code": "content_filter", "message": "filtered"}),
    "too long, in the stream": stream_error({"message": "context length exceeded"}),
}
OF_ONE_CLIENT: dict[str, Any] = {
    **OF_A_PROMPT,
    "no text": ProviderError("empty", "no text at all"),
    "no money": ProviderError("budget", "may cost $1"),
}
OF_A_PROVIDER: dict[str, Any] = {
    "down": ProviderError("http", "500 oops", status=500),
    "key": ProviderError("http", "401 who are you", status=401),
    "no such model": ProviderError("http", "404 no", status=404),
    "no credit": ProviderError("account", "400 credit balance", status=400),
    "busy": ProviderError("overload", "429", status=429),
    "slow": ProviderError("timeout", "no text within 10 s"),
    "gone": ConnectionError("refused"),
    "odd": ProviderError("stream", "no JSON"),
}


def test_each_failure_is_somebodys():
    for name, error in OF_ONE_CLIENT.items():
        assert not is_of_the_provider(error), name
        assert is_of_the_prompt(error) == (name in OF_A_PROMPT), name
    for name, error in OF_A_PROVIDER.items():
        assert is_of_the_provider(error), name
        assert not is_of_the_prompt(error), name


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"message": "maximum context length is 10 tokens"}, "http"),
        (400, {"code": "content_filter", "message": "filtered"}, "refused"),
        (403, {"message": "your input was flagged"}, "refused"),
        (403, {"message": "no"}, "http"),
        (402, {"message": "pay"}, "account"),
        (400, {"message": "no", "details": [{"reason": "API_KEY_INVALID"}]}, "account"),
        (400, {"message": "Your credit balance is too low to access"}, "account"),
        (400, {"message": 'you said {"message": "Your credit balance is too low"}'}, "http"),
        (400, {"message": 'you said {"reason": "API_KEY_INVALID"}'}, "http"),
        (503, {"message": "content_filter"}, "overload"),
    ],
)
def test_a_refusal_is_known_by_its_status_and_its_text(
    status: int, error: dict[str, Any], kind: str
):
    assert kind_of_refusal(status, json.dumps({"error": error})) == kind


@pytest.mark.parametrize("how", ["first", "hedge", "fallback", "quorum", "all"])
@pytest.mark.parametrize("name", OF_ONE_CLIENT)
async def test_one_clients_prompts_keep_no_provider_from_others(name: str, how: Strategy):
    rivals = [Rival(one, "yes", fails=[OF_ONE_CLIENT[name]] * 9) for one in ("a", "b")]
    model = {**ASK, "model": f"race:{how}"}
    async with no_leaks(), serving(*rivals, rules=Rules(failures=1, hedge=0.5)) as service:
        for _ in range(4):
            refused = await service.ask(model)
            if name in OF_A_PROMPT:
                assert refused.status_code == 400
                code = "context_length_exceeded" if "too l" in name else "refused"
                assert refused.json()["error"]["code"] == code
                assert refused.json()["error"]["type"] == "invalid_request_error"
            else:
                assert refused.status_code in (429, 502)
        for one in rivals:
            one.fails.clear()
        fine = await service.ask(model)
    assert (fine.status_code, fine.json()["choices"][0]["message"]["content"]) == (200, "yes")


@pytest.mark.parametrize("name", OF_A_PROVIDER)
async def test_a_provider_that_fails_everybody_is_passed_over(name: str):
    rival = Rival("only", fails=[OF_A_PROVIDER[name]] * 9)
    async with serving(rival, rules=Rules(failures=1)) as service:
        assert (await service.ask()).status_code in (429, 502, 504)
        passed = await service.ask()
        assert (passed.status_code, passed.json()["error"]["code"]) == (503, "passed_over")


async def test_what_only_some_refuse_may_be_tried_again():
    rivals = [
        Rival("a", fails=[OF_A_PROMPT["wrong"]]),
        Rival("b", fails=[OF_A_PROVIDER["down"]] * 2),
    ]
    async with serving(*rivals) as service:
        assert (await service.ask()).status_code == 502


def test_an_answer_that_is_whole_lacks_nothing():
    assert Answer(text="x", provider="p", finish="stop", usage=Usage()).lacks == ""
