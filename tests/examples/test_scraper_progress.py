"""What a crawl shows while it runs: displays follow the tally, and a broken one hurts nobody."""

import io

import anyio
import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from examples.scraper.progress import Bar, Lines, Tally, shown
from shoal import Application, Hook, Limits, Outcome, State, action, fan_out


@action(reads=["n"], writes=["page"])
async def fetch(n: int) -> int:
    return 1 // n  # 0 fails


def count(state: State, outcome: Outcome) -> State:
    if isinstance(getattr(outcome, "error", None), ZeroDivisionError):
        return state.put("failures", "zero", 1)
    return state.increment(pages=1)


def run(tally: Tally, display: Hook) -> State:
    crawl = fan_out(
        fetch,
        over="starts",
        item="n",
        reduce=count,
        writes=["pages", "failures"],
        on_error="collect",
        limits=Limits(1),
        name="crawl",
    )
    app = Application(crawl, hooks=[tally, display])
    starting: dict[str, object] = {"starts": [2, 0, 1], "pages": 0, "failures": {}}
    return anyio.run(app.run, starting).state


@pytest.fixture
def tally() -> Tally:
    return Tally(State({"pages": 0, "failures": {}}), known=3)


def test_lines_tell_how_far_the_crawl_is(tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    run(tally, Lines(tally, every=0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("2 pages, 1 failed, 0 waiting, ")


def test_lines_come_now_and_then_only(tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    run(tally, Lines(tally, every=3600))
    assert capsys.readouterr().err == ""


def test_a_bar_ends_where_the_crawl_does(tally: Tally) -> None:
    shown_on = io.StringIO()
    with Progress(MofNCompleteColumn(), console=Console(file=shown_on)) as progress:
        run(tally, Bar(tally, progress))
    assert "3/3" in shown_on.getvalue()


def test_a_display_that_breaks_does_not_stop_the_crawl(
    tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    assert run(tally, Lines(tally, every=0))["pages"] == 2
    assert (tally.ended, tally.failed) == (3, 1)


def test_the_quiet_style_has_no_display(tally: Tally) -> None:
    with shown(tally, "none") as displays:
        assert displays == []


def test_a_summary_names_failures_and_what_is_left(tally: Tally) -> None:
    tally.state = State({"pages": 7, "failures": {"timeout": 2, "http": 1}})
    tally.known = 12
    assert tally.summary().startswith(
        "7 pages, 3 failed (http 1, timeout 2), 2 known but not fetched in "
    )
