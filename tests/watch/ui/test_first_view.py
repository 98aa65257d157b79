"""What stands where on the pages: bars of steps, races, limits, lists of runs, timelines."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import anyio
import pytest

from shoal import Application, MemoryStore, RunPath, action, fan_out, first, race
from shoal.watch import LimitUse, LiveStep, Row, StepBar
from shoal.watch._timeline import Timeline
from shoal.watch.ui import create_app
from tests.watch.ui.clients import TOKEN, Page, client_of, fake_ui, words
from tests.watch.ui.fakes import FakeQueries, summary

pytestmark = pytest.mark.anyio
RUN = "/runs/crawl-2026-11-30"


def rows_of(text: str) -> list[str]:
    """Return the steps and the steps of their children, as parts of the page."""
    return re.findall(r'<div class="step(?: inner)?">.*?</div>', text)


def with_bars(*bars: StepBar) -> FakeQueries:
    class Barred(FakeQueries):
        async def overview(self, path: Any) -> Any:
            return replace(await super().overview(path), bars=bars)

    return Barred()


def under_way(step: str, at: Mapping[str, Mapping[Any, int]], **more: Any) -> StepBar:
    return StepBar(step=step, visit=0, is_under_way=True, at=at, **more)


async def test_each_step_of_the_chain_has_a_bar_and_says_what_its_children_do():
    at = {"fetch": {"rate": 14, "action": 5, "backoff": 1}, "parse": {"reducer": 4}, "save": {}}
    bar = under_way("pages", at, counts={"succeeded": 70}, total=200, in_flight=24, waiting=40)
    async with client_of(fake_ui(with_bars(bar)).app) as client:
        rows = rows_of((await client.get(RUN)).text)
    outer, fetch, parse = rows
    assert re.findall(r's-(\w+)" x="[\d.]+%" width="([\d.]+)%', outer) == [
        *(("succeeded", "35.00"), ("running", "12.00"), ("waiting", "20.00"))
    ]
    assert re.findall(r's-(\w+)" x="[\d.]+%" width="([\d.]+)%', fetch) == [
        *(("running", "20.83"), ("waiting", "58.33"), ("backoff", "4.17"))
    ]
    assert words(fetch) == (
        "fetch14 waiting for a rate · 5 working · 1 waiting for its next attempt"
    )
    assert re.findall(r's-(\w+)" x="[\d.]+%" width="([\d.]+)%', parse) == [("other", "16.67")]
    assert words(parse) == "parse4 being applied"


async def test_many_steps_of_children_are_left_out_and_counted():
    many = {f"step {n}": {"action": 1, "rate": 2, "backoff": 1, "store": 1} for n in range(11)}
    steps = [under_way(f"part {n}", many, total=10) for n in range(12)]
    async with client_of(fake_ui(with_bars(*steps)).app) as client:
        page = await client.get(RUN)
    assert len(rows_of(page.text)) == 12 + 8
    assert "3 more of its steps are left out" in words(page.text)
    assert "11 more of its steps are left out" in words(page.text)
    assert len(Page(page.text).tags) < 600


async def test_a_step_without_a_known_end_says_that_its_number_is_of_ended_children():
    bar = StepBar(step="pages", visit=0, counts={"succeeded": 150})
    async with client_of(fake_ui(with_bars(bar)).app) as client:
        [row] = rows_of((await client.get(RUN)).text)
    assert words(row) == "pages150 done"


@action(reads=["question"], writes=["answer"])
async def ask(question: str, seconds: float) -> str:
    await anyio.sleep(seconds)
    if not seconds:
        raise ConnectionError("overloaded")
    return f"{question}!"


MODELS = {"tiny": 0.0, "huge": 30.0, "local": 1.0, "cloud": 2.0}
ASKS = [ask.bind(name=name, seconds=seconds) for name, seconds in MODELS.items()]


async def test_a_race_says_who_has_won_in_its_step_its_table_and_its_timeline():
    store = MemoryStore()
    await Application(race(*ASKS, into="answer"), name="ask", store=store).run(
        {"question": "why"}, id="r"
    )
    async with client_of(create_app(store, token=TOKEN)) as client:
        page = (await client.get("/runs/r")).text
        timeline = (await client.get("/runs/r?view=timeline")).text
        [step] = rows_of(page)
        [won] = re.findall(r'won by <a href="([^"]+)"', step)
        winner = await client.get(won)
    assert words(step) == "answer4 done · won by local · 3 lost"
    assert "<h1>local</h1>" in winner.text
    [row] = re.findall(r'<tr id="[^"]+">.*?</tr>', page)
    assert "won · result" in words(row)
    assert page.count("lost to") == 3
    assert re.findall(r"(\d+ \w\w+)</span>", timeline.partition('class="legend"')[2]) == [
        *("1 succeeded", "3 lost")
    ]
    assert "s-failed" not in timeline


async def test_a_race_with_several_winners_names_none_as_the_one():
    store = MemoryStore()
    two = race(*ASKS, into="answers", until=first(2))
    await Application(two, name="ask", store=store).run({"question": "why"}, id="r")
    async with client_of(create_app(store, token=TOKEN)) as client:
        page = (await client.get("/runs/r")).text
    assert words(rows_of(page)[0]) == "answers4 done · 2 lost"
    assert "won" not in words(page)


async def test_lost_runs_have_a_filter_and_are_not_among_the_running_ones():
    async with client_of(fake_ui().app) as client:
        pages = {each: await client.get(f"/?status={each}") for each in ("running", "lost")}
    runs = {
        each: re.findall(r'<a class="key" href="([^"]+)"', page.text)
        for each, page in pages.items()
    }
    assert runs == {"running": [RUN], "lost": ["/runs/nightly"]}


async def test_many_lost_runs_have_pages():
    class Many(FakeQueries):
        async def runs(self, *, after: Any = None, limit: int = 50, **_: Any) -> Any:
            every = [
                summary(RunPath(run_id=str(n)), "a", "running", holder="" if n % 3 else "process 7")
                for n in range(200)
            ]
            at = 0 if after is None else int(after) + 1
            page = every[at : at + limit]
            more = page[-1].run_id if at + limit < 200 else None
            return type("Found", (), {"runs": page, "after": more})()

    seen: list[str] = []
    async with client_of(fake_ui(Many()).app) as client:
        place: str | None = "/?status=lost"
        while place is not None:
            page = await client.get(place)
            found = re.findall(r'<a class="key" href="/runs/([^"]+)"', page.text)
            assert len(found) <= 30
            seen += found
            further = re.findall(r'<a href="([^"]+)" rel="next"', page.text)
            place = further[0].replace("&amp;", "&") if further else None
    assert seen == [str(n) for n in range(200) if n % 3]


@pytest.mark.parametrize(("in_use", "colour"), [(15, "running"), (40, "waiting")])
async def test_children_in_flight_hold_nothing_up_while_there_is_room(in_use: int, colour: str):
    class Limited(FakeQueries):
        async def limits(self, run_id: str | None = None) -> Any:
            return [
                LimitUse(
                    owner="pages", part=-1, limits="in flight", in_use=in_use, slots=40,
                    waiting=12_869,
                )
            ]  # fmt: skip

    async with client_of(fake_ui(Limited()).app) as client:
        page = (await client.get("/limits")).text
    assert f"{in_use} of 40 in use · 12,869 not begun" in words(page)
    assert re.findall(r'rect class="s-(\w+)"', page) == [colour]


async def test_a_histogram_says_how_much_a_column_is():
    async with client_of(fake_ui().app) as client:
        page = words((await client.get(f"{RUN}?view=timeline")).text)
    assert re.search(r"each column is 5.2 s, the highest has \d{3}", page)


async def test_the_attempts_have_a_column_if_there_are_any():
    class Once(FakeQueries):
        def _rows(self, path: Any) -> Any:
            return [row._replace(attempts=1) for row in super()._rows(path)]

        async def overview(self, path: Any) -> Any:
            return replace(await super().overview(path), longest=[])

    heads: list[list[str]] = []
    for queries in (FakeQueries(), Once()):
        async with client_of(fake_ui(queries).app) as client:
            page = (await client.get(RUN)).text
        heads.append(re.findall(r"<th [^>]*>(\w+)</th>", page))
        cells = {row.count("<td") for row in re.findall(r"<tr id=.*?</tr>", page)}
        assert cells == {len(heads[-1])}
    assert heads == [
        ["Key", "Status", "Attempts", "Took", "Says"],
        ["Key", "Status", "Took", "Says"],
    ]


async def test_a_question_of_short_texts_is_shown_as_such():
    @action(reads=["n"], writes=["m"])
    async def doubt(n: int, context: Any) -> int:
        schema = {"type": "object", "properties": {"go": {"type": "boolean"}}, "required": ["go"]}
        await context.ask("go on", {"question": "Go <on>?", "left": 3, "schema": schema})
        return n

    store = MemoryStore()
    fan = fan_out(doubt, over="ns", item="n", key=str, into="ms")
    await Application(fan, name="doubts", store=store).run({"ns": [1]}, id="r")
    async with client_of(create_app(store, token=TOKEN)) as client:
        page = (await client.get("/runs/r")).text
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page) == [
        *(("question", "Go &lt;on&gt;?"), ("left", "3"))
    ]


async def test_the_page_of_limits_has_what_is_in_use_waits_by_key_breakers_and_budgets():
    async with client_of(fake_ui().app) as client:
        page = words((await client.get("/limits")).text)
    for part in (
        "20 of 20 in use · 41 waiting",
        "waiting by key: docs.example 61, blog.example 30, cdn.example 21",
        "3 paused",
        "38 keys",
        "spent 1.84",
        "Breakers",
        "Budgets of retries",
        "RetryBudget(share=0.1)none left · 38 refusedof crawl-2026-11-30",
        "RetryBudget(share=0.5, floor=2)20 left",
        "used by crawl-2026-11-30",
    ):
        assert part in page


async def test_a_child_that_waits_for_a_place_says_so():
    class Waiting(FakeQueries):
        async def overview(self, path: Any) -> Any:
            found = await super().overview(path)
            run = replace(found.longest[0], doing="slot", limit="in flight", limit_key="")
            return replace(found, longest=[run])

    async with client_of(fake_ui(Waiting()).app) as client:
        page = words((await client.get(RUN)).text)
    assert "fetch: waiting for a place in flight · attempt" in page


async def test_children_that_have_saved_nothing_are_counted_beside_the_table():
    class Gone(FakeQueries):
        async def overview(self, path: Any) -> Any:
            found = await super().overview(path)
            return replace(found, bars=[replace(one, gone=4) for one in found.bars])

    async with client_of(fake_ui(Gone()).app) as client:
        live = words((await client.get(RUN)).text)
        lost = words((await client.get("/runs/nightly")).text)
    assert "in the store; 20 more run and have saved nothing yet" in live
    assert "43 in the store; 1 more was in flight and had saved nothing" in lost


async def test_nested_fan_outs_of_a_step_say_how_far_they_are():
    class Nested(FakeQueries):
        def __init__(self, known: int) -> None:
            super().__init__()
            self.known = known

        async def overview(self, path: Any) -> Any:
            found = await super().overview(path)
            assert found.report is not None
            child = RunPath(parent=found.path, step="pages", act="page", key="k")
            steps = tuple(
                LiveStep(
                    path=RunPath(parent=found.path, step="pages", act="page", key=f"k{n}"),
                    step="parts", visit=0, total=30, ended=10 + n, failed=n, in_flight=3,
                )
                for n in range(self.known)
            )  # fmt: skip
            below = RunPath(parent=child, step="parts", act="part", key="7")
            bar = under_way("pages", {"parts": {"action": 2}})
            return replace(
                found,
                bars=[bar],
                report=replace(found.report, steps=steps),
                longest=[replace(found.longest[0], path=below, title="")],
            )

    async with client_of(fake_ui(Nested(2)).app) as client:
        page = words((await client.get(RUN)).text)
    assert "21 of 60 · 1 failed · 6 running" in page
    assert "k / 7fetch:" in page, "of whose child it is"
    async with client_of(fake_ui(Nested(1)).app) as client:  # the report leaves some out
        assert "parts2 working" in words((await client.get(RUN)).text)


async def test_the_slots_of_a_limit_with_keys_are_those_of_all_keys():
    class Keyed(FakeQueries):
        async def limits(self, run_id: str | None = None) -> Any:
            return [
                LimitUse(
                    owner="fetch", limits="Limits(2, by=host)", in_use=6, slots=2, waiting=3,
                    keys=4, holders=("crawl-2026-11-30",),
                ),
                LimitUse(
                    owner="ask", limits="Budget(5, 'USD')", in_use=0, slots=None, waiting=0,
                    keys=2, cost=1.5, amount=5, unit="USD",
                ),
            ]  # fmt: skip

    async with client_of(fake_ui(Keyed()).app) as client:
        page = (await client.get("/limits")).text
    assert "6 of 8 in use · 3 waiting4 keys, 2 for each" in words(page)
    assert "spent 1.50 USD in all, of 5 for each" in words(page)
    assert re.search(r'class="s-waiting" width="75.00%"', page)
    assert re.search(r'name="n" min="1" step="1" value="2"', page), "what can be changed"


@pytest.mark.parametrize("run", ["nightly", "crawl-2026-11-30"])
async def test_bars_of_a_lost_run_do_not_run(run: str):
    class InFlight(FakeQueries):
        async def timeline(self, path: Any, *, bins: int = 60) -> Any:
            row = Row(path=RunPath(parent=path, step="s", act="a", key="k"), status="running")
            begins = time.time() - 9
            bars = [row._replace(began_at=begins)]
            return Timeline(begins_at=begins, ends_at=begins + 8, bars=bars, total=1)

    async with client_of(fake_ui(InFlight()).app) as client:
        page = (await client.get(f"/runs/{run}?view=timeline")).text
    is_lost = run == "nightly"
    assert ("1 gone with their process" in words(page)) is is_lost
    [colour] = re.findall(r'rect class="s-(\w+)"', page.partition('class="timeline"')[2])
    assert colour == ("lost" if is_lost else "running")
    assert f"k: {'lost' if is_lost else 'running'}, 8 s" in page


async def test_children_of_a_lost_run_are_counted_as_lost():
    async with client_of(fake_ui().app) as client:
        page = (await client.get("/runs/nightly")).text
    chips = re.findall(r'<a href="([^"]+)#h-children">(.*?)</a>', page)
    assert ("/runs/nightly?status=running", "lost 3") in chips


async def test_a_child_that_is_not_in_the_store_yet_has_no_position():
    class Early(FakeQueries):
        async def overview(self, path: Any) -> Any:
            found = await super().overview(path)
            return replace(found, row=Row(path=found.path, status="running"), status="running")

    async with client_of(fake_ui(Early()).app) as client:
        page = words((await client.get(f"{RUN}/pages:0:fetch:x")).text)
    assert "executes fetch" in page
    assert "position" not in page
