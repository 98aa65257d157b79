"""What a crawl shows while it runs: displays follow the tally, and a broken one hurts nobody."""

import io
import json
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live
from rich.progress import MofNCompleteColumn, Progress

from examples.scraper.fetching.fetch import FetchError, LeftAlone
from examples.scraper.frontier.links import Frontier, Link, start_link
from examples.scraper.output.progress import Bars, JsonLines, Plain, Tally, shown
from examples.scraper.output.rows import COLUMNS, Row, failed_row, kind_of
from examples.scraper.settings import Settings
from shoal import Application, Codec, Hook, Limits, RetryLater, action, fan_out

URLS = ["http://a/1", "http://a/2", "http://b/3"]


@action(reads=["link"], writes=["page"])
async def fetch(link: Link) -> dict[str, Any]:
    if link["url"] == "http://a/2":
        raise FetchError("timeout", "too slow")
    page: dict[str, Any] = {**dict.fromkeys(COLUMNS), "selected": {}, "links": []}
    return page | {"status": 200, "bytes": 5, "elapsed_ms": 40, "attempts": 2}


@pytest.fixture
def tally() -> Tally:
    return Tally(Frontier(Settings(), map(start_link, URLS)))


def run(tally: Tally, display: Hook) -> None:
    crawl = fan_out(
        fetch, over="starts", item="link", on_error="collect", limits=Limits(1), name="crawl"
    )
    starts = list(map(start_link, URLS))
    Application(crawl, hooks=[tally, display]).run_sync({"starts": starts})


def test_lines_show_how_far_the_crawl_is(tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    run(tally, Plain(tally, every=0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("1 pages, 0 failed, 2 waiting, ")
    assert lines[-1].startswith("2 pages, 1 failed, 0 waiting, ")


def test_lines_come_now_and_then_only(tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    run(tally, Plain(tally, every=3600))
    assert capsys.readouterr().err == ""


def test_statistics_are_json(tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    run(tally, JsonLines(tally, every=0))
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (last["pages"], last["failed"], last["waiting"]) == (2, {"timeout": 1}, 0)
    assert (last["bytes"], last["retries"], last["in_flight"]) == (10, 2, 0)
    assert last["statuses"] == {"200": 2, "none": 1}
    assert last["latency_ms"]["p95"] == 40
    assert last["hosts"] == {
        "a": {"pages": 1, "failed": 1, "waiting": 0, "bytes": 5},
        "b": {"pages": 1, "failed": 0, "waiting": 0, "bytes": 5},
    }


def test_a_bar_ends_where_the_crawl_does_and_hosts_stand_below(tally: Tally) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80)
    bar = Progress(MofNCompleteColumn(), console=console, auto_refresh=False)
    with Live(bar, console=console, auto_refresh=False) as live:
        run(tally, Bars(tally, 0, bar, live))
    console.print(live.get_renderable())
    lines = file.getvalue().splitlines()
    assert any("3/3" in line for line in lines)
    assert [line.split() for line in lines[-2:]] == [
        ["a", "1", "1", "0", "0.0"],
        ["b", "1", "0", "0", "0.0"],
    ]


def test_a_display_that_breaks_does_not_stop_the_crawl(
    tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    run(tally, Plain(tally, every=0))
    assert (tally.pages, tally.ended, tally.failed) == (2, 3, 1)


def test_the_quiet_style_has_no_display(tally: Tally) -> None:
    with shown(tally, "none") as displays:
        assert displays == []


def row(**given: Any) -> Row:
    return {**dict.fromkeys(COLUMNS), "url": "http://a/1", "elapsed_ms": 1, **given}


def test_a_summary_names_failures_and_what_is_left(tally: Tally) -> None:
    tally.recall([row(error={"kind": kind, "message": ""}) for kind in ("timeout", "http")])
    assert tally.summary().startswith(
        "0 pages, 2 failed (http 1, timeout 1), 1 known but not fetched in "
    )
    assert tally.rate == 0  # others have done that


def test_what_robots_leave_out_has_not_failed(tally: Tally) -> None:
    tally.count(row(error={"kind": "robots", "message": ""}, fetched_at="2026"))
    tally.count(row(error={"kind": "robots", "message": "can't be read"}))
    assert (tally.left_out["robots"], tally.failures["robots"]) == (1, 1)


def test_failures_are_rows_by_their_kind() -> None:
    link = start_link("http://a/1")
    failed = failed_row(link, FetchError("http", "no", status=500, final_url="http://a/2"), 3, 1.5)
    assert failed is not None
    assert (failed["status"], failed["final_url"], failed["elapsed_ms"]) == (
        500,
        "http://a/2",
        1500,
    )
    assert [*failed] == [*COLUMNS]
    cause = FetchError("refused", "status 503", status=503, final_url="http://a/2", transient=True)
    refused = Codec().decode(Codec().encode(LeftAlone(1, cause)))
    row = failed_row(link, refused, 10, 1.5)
    assert row is not None
    assert (row["status"], row["final_url"]) == (503, "http://a/2"), "also of what was saved"
    assert row["error"]["kind"] == "refused"
    link["kind"] = "sitemap"
    assert failed_row(link, ValueError(), 1, 0) is None
    assert kind_of(RetryLater(1)) == "refused"
