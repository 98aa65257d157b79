"""The command line: what it refuses, how it exits, and what it prints where."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from rich.console import Console

from examples.llm_race import Chunk, Provider, ProviderError, Rules
from examples.llm_race.__main__ import main
from examples.llm_race.bench import as_markdown, figures, percentiles
from examples.llm_race.client.exchange import Prompt
from examples.llm_race.command import commands
from examples.llm_race.command.commands import ask, rules_of
from examples.llm_race.command.display import Printer, table_of
from examples.llm_race.command.options import duration, hedge_delay, parse
from examples.llm_race.race.racing import Race, new_client, scoreboard
from shoal import Hedge, Runtime
from shoal.errors import HookFailed
from shoal.testing import run_virtual
from tests.examples.rivals import NO_CLIENT, Rival, hold

Say = Callable[..., tuple[int, str, list[Any]]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run `ask` with scripted models; give the exit code, stdout, and the lines of stderr."""

    def run(*args: str, rivals: Sequence[Rival]) -> tuple[int, str, list[Any]]:
        providers = [rival.provider() for rival in rivals]
        code = run_virtual(partial(ask, parse(["ask", *args]), providers))
        out, err = capsys.readouterr()
        return (
            code,
            out,
            [json.loads(line) if line[0] == "{" else line for line in err.splitlines()],
        )

    return run


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is to race, `main` has one that answers at once: it knows no virtual clock."""

    def contestants(*_: object) -> list[Provider]:
        return [Rival("a", ttft=0, pace=0).provider()]

    monkeypatch.setattr("examples.llm_race.__main__.contestants", contestants)


@pytest.fixture(autouse=True)
def no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    # Virtual clocks know no signals.
    async def simply(work: Callable[[], Any], _settle: object = None) -> bool:
        await work()
        return False

    monkeypatch.setattr(commands, "until_interrupted", simply)


def test_the_answer_goes_to_stdout_and_the_race_to_stderr(say: Say) -> None:
    code, out, err = say("why?", rivals=[Rival("slow", ttft=5), Rival("quick", text="because")])
    assert (code, out) == (0, "because\n")
    *lanes, totals = err
    assert {lane["provider"]: lane["status"] for lane in lanes} == {
        "slow": "cancelled",
        "quick": "won",
    }
    assert lanes[1]["cost_usd"] == pytest.approx(0.00021)
    assert (totals["winner"], totals["strategy"]) == ("quick", "first")
    assert totals["usage"] == "estimated"


def test_json_is_one_object_with_everything(say: Say) -> None:
    rivals = [Rival("a", text="one"), Rival("b", text="two")]
    code, out, err = say("--json", "--strategy", "all", "why?", rivals=rivals)
    said = json.loads(out)
    assert (code, err) == (0, [])
    assert said["answers"] == {"a": "one", "b": "two"}
    assert said["winner"] is None
    assert len(said["lanes"]) == 2
    assert said["usage"] == "reported"


def test_all_answers_are_told_apart(say: Say) -> None:
    _, out, _ = say("--strategy", "all", "?", rivals=[Rival("a", text="1"), Rival("b", text="2")])
    assert out == "# a\n\n1\n\n# b\n\n2\n\n"


def test_no_acceptable_answer_is_exit_code_5(say: Say) -> None:
    code, out, err = say("--min-chars", "9", "why?", rivals=[Rival("a", text="no")])
    assert (code, out) == (5, "")
    assert err[0]["status"] == "rejected"
    assert "only 2 characters long" in err[-1]["error"]


def test_a_stream_is_printed_as_it_comes_and_once(say: Say) -> None:
    rivals = [Rival("slow", ttft=5), Rival("quick", text="word by word")]
    code, out, err = say("--stream", "why?", rivals=rivals)
    assert (code, out) == (0, "word by word\n")
    assert err[-1]["strategy"] == "first-token"


def test_what_must_be_acceptable_is_not_streamed(say: Say) -> None:
    code, out, err = say("--stream", "--regex", "x", "why?", rivals=[Rival("a", text="xy z")])
    assert (code, out, err[-1]["strategy"]) == (0, "xy z\n", "first")


def test_a_fallback_streams_too(say: Say) -> None:
    rivals = [Rival("torn", breaks=[0, 0]), Rival("b", text="whole answer")]
    code, out, _ = say("--stream", "--strategy", "fallback", "why?", rivals=rivals)
    assert (code, out) == (0, "whole answer\n")


def test_an_answer_that_breaks_off_and_begins_anew_says_so(say: Say) -> None:
    rivals = [Rival("torn", text="half an answer", breaks=[2])]
    args = ("--stream", "--on-broken-stream", "restart", "why?")
    code, out, err = say(*args, rivals=rivals)
    assert (code, out) == (0, "half an \nhalf an answer\n")
    assert "the stream ended before" in err[0]
    assert err[1] == "it starts again"
    code, out, err = say("--stream", "why?", rivals=[Rival("torn", text="half one", breaks=[1])])
    assert (code, out) == (5, "half \n")
    assert "anew" not in str(err)


def test_an_answer_that_is_put_off_in_its_middle_begins_anew(say: Say) -> None:
    rival = Rival("busy", text="one two three")
    whole, told = rival.stream, list[str]()

    async def stream(prompt: str) -> AsyncIterator[Chunk]:
        told.append(prompt)
        if len(told) == 1:
            yield Chunk(text="one ")
            raise ProviderError("overload", "busy", retry_after=1, retryable=True)
        async for chunk in whole(prompt):
            yield chunk

    rival.stream = stream
    args = ("--stream", "--on-broken-stream", "restart", "why?")
    code, out, err = say(*args, rivals=[rival])
    assert (code, out) == (0, "one \none two three\n")
    assert err[:2] == ["the answer breaks off: it begins from its start again", "it starts again"]


def test_a_leader_that_fails_before_the_decision_leaves_no_words(say: Say) -> None:
    rivals = [Rival("torn", breaks=[1, 1], ttft=1), Rival("other", text="whole", ttft=9)]
    args = ("--stream", "--on-broken-stream", "restart", "why?")
    code, out, _ = say(*args, rivals=rivals)
    assert (code, out) == (0, "a \na \nwhole\n")


def test_a_race_that_runs_out_of_time_does_not_begin_anew(say: Say) -> None:
    rivals = [Rival("slow", text="one two three", pace=3)]
    code, out, err = say("--stream", "--timeout", "5", "why?", rivals=rivals)
    assert (code, out) == (5, "one two \n")
    assert err[0].endswith("'slow' was cancelled: timeout of 5 s")
    assert "anew" not in str(err)


def test_every_event_can_be_seen(say: Say) -> None:
    _, _, err = say("--trace", "why?", rivals=[Rival("a")])
    told = "\n".join(map(str, err))
    assert all(name in told for name in ("RunStarted", "ChildStarted", "Item(", "RunEnded"))


def test_a_race_that_is_kept_is_not_held_again(say: Say, tmp_path: Path) -> None:
    args = ("--save", str(tmp_path / "runs.db"), "--run-id", "once", "why?")
    rival = Rival("a", text="kept")
    assert say(*args, rivals=[rival])[:2] == (0, "kept\n")
    code, out, err = say(*args, rivals=[rival])
    assert (code, out) == (0, "kept\n")
    assert len(rival.asked_at) == 1
    assert err == [  # what is known of it now
        {
            "strategy": "first",
            "winner": "a",
            "finish": "stop",
            "error": None,
            **dict.fromkeys(("seconds", "ttft", "tokens", "cost_usd", "usage")),
        }
    ]


def test_on_a_terminal_too(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--save", str(tmp_path / "runs.db"), "--run-id", "once", "why?")
    say(*args, rivals=[Rival("a", text="kept")])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run_virtual(partial(ask, parse(["ask", *args]), [Rival("a").provider()]))
    assert "it was answered before" in capsys.readouterr().err


@pytest.mark.usefixtures("instant")
def test_a_name_of_another_race_is_said_in_the_words_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["ask", "--save", str(tmp_path / "runs.db"), "--run-id", "once"]
    assert main([*args, "why?"]) == 0
    capsys.readouterr()
    assert main([*args, "how?"]) == 2
    out, err = capsys.readouterr()
    assert (out, err[:7]) == ("", "error: ")
    assert "runs.db has another race as 'once'" in err
    assert "--run-id" in err
    assert "fork" not in err


@pytest.mark.usefixtures("instant")
def test_a_batch_of_other_prompts_is_said_in_the_words_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    args = ["batch", str(prompts), "-o", str(tmp_path / "out.jsonl"), "--resume"]
    prompts.write_text('"why?"\n')
    assert main(args) == 0
    capsys.readouterr()
    prompts.write_text('"how?"\n')
    assert main(args) == 2
    err = capsys.readouterr().err
    assert f"{prompts} or --system, --schema or --max-tokens have changed" in err
    assert "fork" not in err


def test_an_interrupted_race_says_how_long_it_took(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(work: Callable[[], Any]) -> bool:
        with anyio.move_on_after(1.4):
            await work()
        return True

    monkeypatch.setattr(commands, "until_interrupted", interrupted)
    code, _, err = say("why?", rivals=[Rival("slow", ttft=9)])
    assert code == 130
    assert err[-1]["seconds"] == err[0]["total"] == pytest.approx(1.4)
    assert err[-1]["error"] == "interrupted"


@pytest.mark.parametrize("strategy", ["first", "all", "judge"])
def test_a_timeout_is_said_as_it_was_given(say: Say, strategy: str) -> None:
    rivals = [Rival("slow", ttft=9), Rival("quick", ttft=0.01, pace=0)]
    if strategy == "first":
        rivals = rivals[:1]
    args = ("--strategy", strategy, "--timeout", "50ms", "--judge", "slow", "why?")
    _, _, err = say(*args, rivals=rivals)
    assert err[0]["detail"] == "timeout of 0.05 s"
    if strategy != "all":
        assert err[-1]["error"] == "timeout of 0.05 s"
    assert "fan-out" not in str(err)
    assert " run " not in str(err)


def test_no_more_is_spent_than_said(say: Say) -> None:
    code, _, err = say("--max-cost", "0.000001", "why?", rivals=[Rival("a")])
    assert code == 5
    assert "1e-06 of 1e-06 is left" in err[0]["detail"]


# -- usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["ask"],
        ["ask", "--strategy", "magic", "x"],
        ["ask", "--hedge-delay", "p100", "x"],
        ["ask", "--hedge-delay", "soon", "x"],
        ["ask", "--timeout", "0", "x"],
        ["ask", "--regex", "(", "x"],
        ["ask", "--schema", "/nowhere.json", "x"],
        ["ask", "--max-cost", "free", "x"],
        ["ask", "--real", "x"],
        ["ask", "--demo", "--config", "race.toml", "x"],
        ["ask", "--run-id", "a", "x"],
        ["batch", "prompts.jsonl"],
        ["bench", "--strategies", "first,magic"],
    ],
)
def test_wrong_usage(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(args)
    assert exited.value.code == 2
    assert "usage: python -m examples.llm_race" in capsys.readouterr().err


CONFIG = '[[provider]]\nname = "a"\nkind = "ollama"\nmodel = "m"\nbase_url = "http://127.0.0.1:1"\n'


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        (["ask", "x"], 2, "there are no providers"),
        (["ask", "--config", "missing.toml", "x"], 1, "No such file"),
        (["ask", "--config", "bad.toml", "x"], 2, "bad.toml: it has no"),
        (["ask", "--config", "good.toml", "-p", "b", "x"], 2, "no provider is named 'b'"),
        (["ask", "--config", "good.toml", ""], 2, "there is no prompt"),
        (
            ["ask", "--config", "good.toml", "--strategy", "judge", "x"],
            2,
            "needs a provider that judges",
        ),
        (["ask", "--config", "good.toml", "--judge", "b", "x"], 2, "no provider is named 'b'"),
        (["ask", "--config", "good.toml", "--schema", "bad.json", "x"], 2, "no JSON Schema"),
        (["batch", "missing.jsonl", "-o", "o", "--config", "good.toml"], 1, "No such file"),
        (["batch", "bad.toml", "-o", "o", "--config", "good.toml"], 2, "line 1: "),
        (
            ["batch", "ok.jsonl", "-o", "old", "--config", "good.toml"],
            2,
            "continue it with --resume",
        ),
        (["batch", "ok.jsonl", "-o", "old", "--resume", "--config", "good.toml"], 2, "else than"),
    ],
)
def test_what_cannot_be_done_is_said(  # noqa: PLR0917 # by name
    args: list[str],
    code: int,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    Path("good.toml").write_text(CONFIG)
    Path("bad.toml").write_text("# nothing\n")
    Path("bad.json").write_text('{"type": "nonsense"}')
    Path("ok.jsonl").write_text('"x"\n')
    Path("old").write_text("notes\n")
    assert main(args) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert why in err


def test_nobody_answers_where_nobody_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "race.toml"
    config.write_text(CONFIG)
    assert main(["ask", "--config", str(config), "x"]) == 5
    *_, lane, _ = capsys.readouterr().err.splitlines()
    assert json.loads(lane)["status"] == "failed"
    assert json.loads(lane)["attempts"] == 2


def test_times_and_percentiles() -> None:
    assert [duration(text) for text in ("2", "0.5s", "800ms", "10m")] == [2, 0.5, 0.8, 600]
    assert hedge_delay("800ms") == 0.8
    assert hedge_delay("p90") == Hedge(percentile=90, budget=0.1, initial=1.0)


def test_what_the_command_line_says_are_the_rules() -> None:
    options = parse(["ask", "--hedge-delay", "p90", "--k", "3", "--ttft-timeout", "2", "x"])
    rules = rules_of(options, [], streams=True)
    assert (rules.strategy, rules.k, rules.terms.ttft_timeout) == ("first-token", 3, 2.0)
    assert rules.hedge == Hedge(percentile=90, budget=0.1, initial=1.0)
    assert rules_of(options, [], streams=False).strategy == "first"
    assert rules_of(parse(["ask", "x"]), [], streams=False).hedge == Rules().hedge


def test_figures_of_a_bench() -> None:
    assert percentiles([3.0, 1.0, 2.0]) == (2.0, 3.0, 3.0)
    assert percentiles([float(n) for n in range(1, 101)]) == (50.0, 95.0, 99.0)
    assert percentiles([]) == (math.inf,) * 3
    won = anyio.run(partial(hold, [Rival("a", ttft=0.01, pace=0), Rival("b", ttft=9)]))
    lost = anyio.run(partial(hold, [Rival("a", ttft=0.01, text="")]))
    row = figures("first", [won, lost])
    assert (row.races, row.answered, row.wins, row.extra_load) == (2, 1, {"a": 0.5}, 0.5)
    table = as_markdown([row]).splitlines()
    assert table[0].startswith("| strategy | first token p50 / p95 / p99 |")
    assert "| a 50% |" in table[2]


# -- displays ----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_table_shows_each_contestant_at_any_moment() -> None:
    rivals = [
        Rival("early", text="a b c d e f", ttft=1, pace=2),
        Rival("late", ttft=50),
        Rival("shaky", ttft=1, fails=[ConnectionError("lost")] * 2),
    ]
    providers = [rival.provider() for rival in rivals]
    rules = Rules()
    board = scoreboard([*providers, Rival("idle").provider()], rules)
    race = Race(providers, rules, board=board)

    def shown(now: float | None = None) -> str:
        lanes = [lane for run in board.races for lane in board.lanes(run)]
        file = io.StringIO()
        Console(file=file, width=140).print(table_of(lanes, now))
        return file.getvalue()

    async with Runtime(seed=1) as runtime, anyio.create_task_group() as tasks:

        async def hold_it() -> None:
            await race.hold(Prompt(text="?"), runtime, NO_CLIENT)

        tasks.start_soon(hold_it)
        await anyio.sleep(1.1)
        table = shown(1.1)
        assert "streaming" in table
        assert "asked" in table
        assert "again in 0.2 s: lost" in table
        assert "not started" in table
        assert "1.10 s" in table
        await anyio.sleep(3)
        assert "failed" in shown()


@pytest.mark.anyio
async def test_a_lane_says_which_limit_it_waits_for() -> None:
    rivals = [
        Rival("often", limits={"rpm": 1}),
        Rival("much", limits={"tpm": 60}),
        Rival("many", limits={"max_concurrency": 1}),
    ]
    providers = [rival.provider() for rival in rivals]
    rules = Rules(strategy="all")
    board = scoreboard(providers, rules)
    race = Race(providers, rules, board=board)
    waiting: dict[str, str] = {}
    async with Runtime(seed=1) as runtime, anyio.create_task_group() as tasks:

        async def hold_it() -> None:
            await race.hold(Prompt(text="?"), runtime, NO_CLIENT)

        for _ in range(2):
            tasks.start_soon(hold_it)
        await anyio.sleep(0.5)
        lanes = [lane for run in board.races for lane in board.lanes(run)]
        waiting |= {lane.name: lane.detail for lane in lanes if lane.status == "waiting"}
        tasks.cancel_scope.cancel()
    assert waiting == {
        "often": "for requests a minute",
        "much": "for tokens a minute",
        "many": "for requests at once",
    }


def test_this_machine_is_behind_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    client = new_client()
    for url in ("http://127.0.0.1:80/", "http://localhost/"):
        assert client._transport_for_url(httpx.URL(url)) is client._transport
    assert client._transport_for_url(httpx.URL("http://a.test/")) is not client._transport


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.anyio
async def test_a_reader_that_has_left_ends_the_race() -> None:
    rivals = [Rival("a", text="x y z"), Rival("b", ttft=99)]
    providers = [rival.provider() for rival in rivals]
    rules = Rules(strategy="first-token")
    race = Race(providers, rules, hooks=[Printer(Broken())])
    async with Runtime(seed=1) as runtime:
        with pytest.raises(HookFailed) as failed:
            await race.hold(Prompt(text="?"), runtime, NO_CLIENT)
    assert isinstance(failed.value.__cause__, BrokenPipeError)
    assert all(rival.closed == 1 for rival in rivals)
