"""What pages show, asked for as a browser does, without one."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from fastapi import FastAPI

from shoal import Application, MemoryStore, Runtime, action, fan_out
from shoal.watch import LimitUse, LiveRun, LiveStep, Row, StepBar, path_text
from shoal.watch.ui import create_app
from shoal.watch.ui._format import key_text
from tests.watch.ui.clients import TOKEN, Page, client_of, events, fake_ui, words
from tests.watch.ui.fakes import (
    ASKED,
    CRAWL,
    HOSTILE,
    REPORT,
    FakeQueries,
    child,
    failed_row,
    page_of,
)
from tests.watch.ui.program import review

pytestmark = pytest.mark.anyio

VIEWS = ("", "timeline", "history", "values", "time")
PAGES = [
    "/",
    "/limits",
    "/?status=failed",
    "/?status=halted&application=review",
    *(f"/runs/crawl-2026-11-30?view={view}" for view in VIEWS),
    "/runs/crawl-2026-11-30?status=failed&order=slowest&step=pages&key=module-0000",
    "/runs/ask-1",
    "/runs/ask-1?view=timeline",
    "/runs/nightly",
    "/runs/review",
    "/runs/ask-1/race:0:model%2520large:",
    "/values/value/ask-1",
    "/nowhere",
    "/runs/nobody",
]


def address_of(n: int) -> str:
    return f"/runs/{quote(path_text(page_of(n)), safe='/:')}"


@pytest.mark.parametrize("page", PAGES)
async def test_every_page_keeps_to_its_security_policy_and_to_600_nodes(page: str):
    async with client_of(fake_ui().app) as client:
        response = await client.get(page)
    assert response.status_code == (404 if page in ("/nowhere", "/runs/nobody") else 200)
    found = Page(response.text)
    assert len(found.tags) < 600
    assert all("src" in attributes for attributes in found.all("script"))
    assert not found.all("style")
    assert not [a for _, a in found.tags if "style" in a or any(n.startswith("on") for n in a)]
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for other in found.links:
        assert other.startswith(("/", "#"))


@pytest.mark.parametrize("page", PAGES[:-2])
async def test_every_link_leads_to_a_page(page: str):
    async with client_of(fake_ui().app) as client:
        links = Page((await client.get(page)).text).links
        for link in {*links} - {"#live"}:
            assert (await client.get(link)).status_code == 200, link


async def test_the_first_view_of_a_run_says_how_it_is_in_the_order_of_its_importance():
    async with client_of(fake_ui().app) as client:
        text = words((await client.get("/runs/crawl-2026-11-30")).text)
    parts = (
        "12,589 of 20,000 · 312 failed · 20 running · 41/s · about 3 min left",
        'held up by rate "docs" (83 % of waiting)',
        "Failures 312 in 5 groups",
        "187ReadTimeout in pages/fetch",
        "pages of docs.example",
        "14 more in flight",
        "attempt 2 of 3 · next in 6.5 s · page 3 of 9",
        "Children",
        "Next page",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


async def test_a_cancellation_needs_no_reason():
    async with client_of(fake_ui().app) as client:
        page = Page((await client.get("/runs/crawl-2026-11-30")).text)
    reasons = page.all("input", name="reason")
    assert reasons
    assert not any("required" in reason for reason in reasons)
    assert {reason.get("placeholder") for reason in reasons} == {"by the page"}
    assert "Reason (may be left empty)" in words(page.text)


async def test_what_a_child_shows_of_the_whole_run_is_called_so():
    class Reported(FakeQueries):
        async def overview(self, path: Any) -> Any:
            return replace(await super().overview(path), report=REPORT)

    async with client_of(fake_ui(Reported()).app) as client:
        of_child = (await client.get(f"{address_of(3)}?view=time")).text
        of_run = words((await client.get("/runs/crawl-2026-11-30?view=time")).text)
    assert "of the whole run went" in words(of_child)
    assert of_child.index("and not of this child alone") < of_child.index("<dl")
    assert "and not of this child alone" not in of_run


async def test_a_position_is_the_one_that_exports_have():
    async with client_of(fake_ui().app) as client:
        text = words((await client.get(address_of(3))).text)
    assert f"position {failed_row(3).position}began" in text.replace(" began", "began")


async def test_a_cancelled_run_says_its_reason_once():
    @action(writes=["n"])
    async def slow() -> int:
        await anyio.sleep(9)
        return 1

    store = MemoryStore()
    app = Application(slow, name="slow", store=store)
    async with Runtime(store=store) as runtime:
        handle = await app.start({}, id="r", runtime=runtime)
        await anyio.sleep(1)
        handle.cancel("enough seen")
        await handle.wait_ended()
    async with client_of(create_app(store, token=TOKEN)) as client:
        page = await client.get("/runs/r?as=fragment")
    shown = page.text.replace(re.findall(r'<p class="hidden".*?</p>', page.text)[0], "")
    assert words(shown).count("enough seen") == 1


async def test_groups_that_are_left_out_are_behind_a_link():
    class Many(FakeQueries):
        async def overview(self, path: Any) -> Any:
            found = await super().overview(path)
            return replace(found, failures=replace(found.failures, omitted=2))

    async with client_of(fake_ui(Many()).app) as client:
        page = await client.get("/runs/crawl-2026-11-30")
    assert re.search(r'<a href="[^"]*status=failed#h-children">2 left out</a>', page.text)


async def test_the_form_of_a_limit_has_its_numbers_and_changes_nothing_as_it_is():
    queries = FakeQueries()
    ui = fake_ui(queries)
    in_flight = LimitUse(
        owner="parts", part=-1, limits="in flight", in_use=6, slots=8, waiting=2, keys=4,
        holders=("crawl-2026-11-30",),
    )  # fmt: skip
    rate = LimitUse(
        owner="calls", limits="Limits(rate=Rate(90, per=60))", in_use=1, slots=None, waiting=0,
        holders=("crawl-2026-11-30",),
    )  # fmt: skip

    async def limits(run_id: str | None = None) -> Any:
        return [in_flight, rate]

    queries.limits = limits
    async with client_of(ui.app) as client:
        page = Page((await client.get("/limits")).text)
        [slots] = page.all("input", name="n")
        [starts] = page.all("input", name="max_rate")
        assert (slots["value"], starts["value"]) == ("2", "90")
        assert "in 4 executions" in words(page.text)
        assert "slots of each execution" in words(page.text)
        assert "per 60 s" in words(page.text)
        assert ui._door is not None
        form = {"csrf": ui._door.form_value, "owner": "calls", "part": "0", "was_max_rate": "90"}
        same = await client.post("/do/limit/crawl-2026-11-30", data=form | {"max_rate": "90"})
        assert (same.status_code, queries.commands) == (200, [])
        assert "Nothing was changed" in words(same.text)
        await client.post("/do/limit/crawl-2026-11-30", data=form | {"max_rate": "80"})
    [command] = queries.commands
    assert command.arguments == {"owner": "calls", "part": 0, "max_rate": 80.0, "by": "the page"}


async def test_breakers_are_shown_with_their_circuits():
    async with client_of(fake_ui().app) as client:
        text = words((await client.get("/limits")).text)
    assert "BreakerspagesBreaker(by=host, failures=3, cool_down=30.0)2 open · 61 skipped" in text
    assert "old.example open, tries again in 12 s, 4 failures in a row" in text
    assert "slow.example half open, a child tries whether it works again, 3 failures" in text
    assert "odd.example closed, 1 failure in a row" in text
    assert "9 more keys have failed" in text
    assert "askBreaker(failures=5, cool_down=30.0)closed" in text


async def test_a_history_begins_with_its_newest_entry_and_says_errors_in_a_line():
    @action(reads=["n"], writes=["m"])
    async def odd(n: int) -> int:
        if n == 58:
            raise ValueError(f"{n} is even")
        return n

    store = MemoryStore()
    fan = fan_out(
        odd, over="ns", item="n", key=str, into="ms", errors_into="failed", on_error="collect"
    )
    await Application(fan, name="odd", store=store).run({"ns": [*range(60)]}, id="r")
    async with client_of(create_app(store, token=TOKEN)) as client:
        page = await client.get("/runs/r?view=history")
        [older] = [link for link in Page(page.text).links if "after=" in link]
        second = await client.get(older)
    shown = words(page.text)
    assert "ValueError: 58 is even" in shown
    assert "ErrorInfo" not in shown
    assert shown.index('["59"]') < shown.index('["58"]') < shown.index('["20"]')
    assert '["5"]' not in shown
    assert '["5"]' in words(second.text)
    assert max(len(Page(each.text).tags) for each in (page, second)) < 600


async def test_children_are_called_by_their_titles_and_say_what_they_do():
    path = page_of(17_003)
    doing: Any = {"step": "fetch", "doing": "rate", "since": 1.0, "age": 48.2}
    run = LiveRun(path=path, title="Module <17>", note="page 3", **doing)

    class Titled(FakeQueries):
        async def overview(self, path: Any) -> Any:
            step = LiveStep(
                path=page_of(17_004), step="links", visit=0, total=6, ended=1, in_flight=2
            )
            report = replace(REPORT, longest=(run,), steps=(step,))
            return replace(await super().overview(path), report=report, longest=[run])

        def _rows(self, path: Any) -> Any:
            running = [Row(path=page_of(n), status="running") for n in (17_003, 17_004)]
            return [*running, *super()._rows(path)]

    async with client_of(fake_ui(Titled()).app) as client:
        parent = await client.get("/runs/crawl-2026-11-30")
        child = await client.get(address_of(17_003))
        below = await client.get(f"{address_of(17_003)}/parse:0:parse:x")
    [row] = re.findall(r"<tr id=.*?Module.*?</tr>", parent.text)
    assert "Module <17>running48 sfetch: waiting for a rate · page 3" in words(row)
    assert "links: 1 of 6, 2 running" in words(parent.text)
    assert "<h1>Module &lt;17&gt;</h1>" in child.text
    assert f"key {key_text(path)}" in words(child.text)
    [way] = re.findall(r'<ol class="crumbs">.*?</ol>', below.text)
    assert "Module <17>" in words(way)
    error = failed_row(3).error
    assert f'class="why" title="{error}"' in unescape(parent.text)


async def test_a_drawing_counts_what_is_left_and_what_runs_in_children():
    inner = child(CRAWL, "reviews", "a.py", act="review_file")
    steps = (
        LiveStep(path=CRAWL, step="reviews", visit=0, total=9, ended=2, in_flight=1),
        LiveStep(path=inner, step="replies", visit=0, total=4, ended=2, failed=1, in_flight=1),
    )

    class Reported(FakeQueries):
        async def overview(self, path: Any) -> Any:
            found = await super().overview(path)
            bar = StepBar(
                step="reviews", visit=0, counts={"failed": 1, "succeeded": 1}, failed=1, total=9,
                in_flight=1, is_under_way=True,
            )  # fmt: skip
            summary = found.summary._replace(application="review")
            report = replace(REPORT, steps=steps)
            return replace(found, summary=summary, bars=[bar], report=report)

    ui = fake_ui(Reported(), applications=[review])
    async with client_of(ui.app) as client:
        drawing = (await client.get("/runs/crawl-2026-11-30?view=graph")).text
        address = "/runs/crawl-2026-11-30/reviews:0:review_file:a.py?view=graph"
        of_child = (await client.get(address)).text
        below = address.replace("?", "/replies:0:answer:x?")
        of_action = (await client.get(below)).text
    assert "1 succeeded · 1 failed · 1 running · 6 left" in words(drawing)
    assert "1 succeeded · 1 failed · 1 running · 1 left" in words(drawing)
    bars = re.findall(r'<rect class="bar (\w+)"', drawing)
    assert bars[:4] == ["succeeded", "failed", "running", "left"]
    assert "read_comments" in of_child
    assert ">reviews<" not in of_child
    assert "shoal-drawing" not in of_action


async def test_scripts_are_not_deferred():
    # htmx begins after its own script then, perhaps before that of its extension for streams.
    async with client_of(fake_ui().app) as client:
        scripts = Page((await client.get("/")).text).all("script")
    assert [script["src"].split("/")[-1].split("?")[0] for script in scripts] == [
        *("htmx.min.js", "hx-sse.min.js", "ui.js")
    ]
    assert all(script.keys() == {"src"} for script in scripts)


async def test_filters_narrow_the_table_and_stay_in_the_address():
    async with client_of(fake_ui().app) as client:
        first = await client.get("/runs/crawl-2026-11-30?status=succeeded&key=module-001")
        [further] = [link for link in Page(first.text).links if "after=" in link]
        second = await client.get(further)
    assert "module-00024" not in words(first.text)
    assert "module-00100" in words(first.text)
    assert "status=succeeded" in further
    assert "key=module-001" in further
    assert "module-00125" in words(second.text)
    assert "module-00100" not in words(second.text)


async def test_losers_are_grey_and_lead_to_the_winner():
    async with client_of(fake_ui().app) as client:
        page = await client.get("/runs/ask-1")
        losers = re.findall(r'<tr id="[^"]+" class="loser">.*?</tr>', page.text)
        [link] = {*re.findall(r'class="won" href="([^"]+)"', page.text)}
        winner = await client.get(link)
    assert len(losers) == 2
    assert not [row for row in losers if "pill failed" in row]
    assert "model small" in words(winner.text)


async def test_a_lost_run_is_told_from_a_running_one_and_leads_to_the_run_that_started_it():
    async with client_of(fake_ui().app) as client:
        runs = words((await client.get("/")).text)
        lost = await client.get("/runs/nightly")
    assert "no process executes it" in runs
    assert "reported last 14 min ago" in words(lost.text)
    assert "/runs/crawl-2026-11-30" in Page(lost.text).links


async def test_texts_of_users_are_escaped_and_any_key_can_be_in_an_address():
    async with client_of(fake_ui().app) as client:
        runs = await client.get("/")
        value = await client.get("/values/value/ask-1")
        child = await client.get(address_of(3))
        [stream] = [a["hx-sse:connect"] for a in Page(child.text).all("main")]
        again = await client.get(stream.replace("as=stream", "as=fragment"))
    for text in (runs.text, value.text):
        assert HOSTILE not in text
        assert HOSTILE in words(text)
    assert "ReadTimeout" in words(child.text)
    assert "ReadTimeout" in words(again.text)


async def test_a_failed_child_shows_its_error_with_its_cause():
    async with client_of(fake_ui().app) as client:
        text = words((await client.get(address_of(3))).text)
    assert "httpx:ReadTimeout" in text or "ReadTimeout: GET https://docs.example/a" in text
    assert "in step 'fetch'" in text
    assert "caused by" in text


async def test_a_fragment_is_the_live_part_of_its_page():
    async with client_of(fake_ui().app) as client:
        page = await client.get("/limits")
        fragment = await client.get("/limits?as=fragment")
    title, _, inner = fragment.text.partition("</title>")
    assert title == "<title>Limits · shoal"
    assert inner in page.text


async def test_a_stream_sends_changes_alone_and_ends_by_itself():
    queries = FakeQueries()
    ui = fake_ui(queries)
    async with client_of(ui.app) as client:
        response = await client.get("/limits?as=stream")
        [only] = events(response.text)
        [id_] = re.findall(r"^id: (.*)$", response.text, flags=re.MULTILINE)
        again = await client.get("/limits?as=stream", headers={"Last-Event-ID": id_})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "Limits(20)" in only
    assert events(again.text) == []


async def test_a_screen_reader_hears_of_changes_now_and_then():
    class Moving(FakeQueries):
        async def overview(self, path: Any) -> Any:
            self.done += 1
            found = await super().overview(path)
            headline = replace(found.headline, text=f"{self.done:,} done")
            return replace(found, headline=headline)

    async with client_of(fake_ui(Moving()).app) as client:
        stream = await client.get("/runs/crawl-2026-11-30?as=stream")
    updates = events(stream.text)
    spoken = [re.findall(r'role="status" aria-live="polite">(.*?)</p>', one) for one in updates]
    assert len(updates) > 50
    assert len({text for [text] in spoken}) == 2  # in 20 seconds


async def test_all_streams_end_when_they_are_closed():
    ui = fake_ui()
    ui.streams.close()
    async with client_of(ui.app) as client:
        assert events((await client.get("/limits?as=stream")).text) == []


async def test_it_can_be_mounted_under_a_prefix():
    service = FastAPI()
    service.mount("/shoal/runs", fake_ui().app)
    async with client_of(service) as client:
        page = await client.get("/shoal/runs/runs/crawl-2026-11-30")
        found = Page(page.text)
        addresses = found.links + [a["src"] for a in found.all("script")]
        addresses += [a["hx-sse:connect"] for a in found.all("main")]
        addresses += [a["action"] for a in found.all("form")]
        assert all(each.startswith(("/shoal/runs/", "#")) for each in addresses)
        assert (await client.get(found.all("script")[0]["src"])).status_code == 200
        assert (await client.get("/shoal/runs/")).status_code == 200
        fragment = found.all("main")[0]["hx-sse:connect"].replace("stream", "fragment")
        assert (await client.get(fragment)).status_code == 200


async def test_a_page_of_200_bars_keeps_to_600_nodes():
    queries = FakeQueries()
    queries.bars = 200
    async with client_of(fake_ui(queries).app) as client:
        page = await client.get("/runs/crawl-2026-11-30?view=timeline")
    found = Page(page.text)
    assert len([a for a in found.all("a") if a.get("aria-label", "").startswith("https://")]) == 200
    assert len(found.tags) < 600


async def test_what_has_ended_is_not_made_again_and_again():
    made: list[str] = []

    class Counting(FakeQueries):
        async def overview(self, path: Any) -> Any:
            made.append(str(path))
            return await super().overview(path)

    async with client_of(fake_ui(Counting()).app) as client:
        await client.get("/runs/ask-1?as=stream")
        ended = len(made)
        await client.get("/runs/crawl-2026-11-30?as=stream")
    assert ended <= 3
    assert len(made) - ended >= 15


async def test_a_question_has_a_form_of_its_schema_where_an_answer_can_be_given():
    queries = FakeQueries()
    async with client_of(fake_ui(queries).app) as client:
        nobody = words((await client.get("/runs/review")).text)
    assert "Publish this comment?" in nobody
    assert "No process executes this run" in nobody
    assert ASKED.parent != CRAWL
    assert TOKEN not in nobody


async def test_pages_show_owner_priority_and_second_copies_and_find_runs_by_owner():
    async with client_of(fake_ui().app) as client:
        runs = (await client.get("/?owner=docs+team")).text
        others = (await client.get("/?owner=eve")).text
        head = words((await client.get("/runs/crawl-2026-11-30")).text)
        spent = words((await client.get("/runs/crawl-2026-11-30?view=time")).text)
    assert runs.count('<tr id="r-') == 1
    assert re.search(r'href="[^"]*owner=docs(\+|%20)team', runs)
    assert "No run is like that." in others
    assert "of docs team" in head
    assert "priority batch" in head
    assert "pages: 2 second copies, 1 used, 1 at work" in spent
    assert "fetch, late after 1.5 s; gave the result" in spent
    assert "fetch, late after 1.5 s; at work" in spent
