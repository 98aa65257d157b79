"""What forms of the page do to runs, over a real store."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote

import anyio
import pytest
from httpx import AsyncClient, Response
from pydantic import Field

from shoal import (
    Application,
    Context,
    Limits,
    MemoryStore,
    PostgresStore,
    RunHandle,
    RunPath,
    Runtime,
    State,
    action,
    fan_out,
)
from shoal.testing import no_leaks
from shoal.watch import Queries
from shoal.watch.ui import create_app
from shoal.watch.ui._guard import Door
from tests.stores.postgres import PostgresServer
from tests.watch.ui.clients import TOKEN, Page, client_of, words
from tests.watch.ui.program import VERDICT

pytestmark = pytest.mark.anyio

broken = {"b"}


@action(reads=["file"], writes=["text"])
async def read(file: str) -> str:
    await anyio.sleep(1)
    if file in broken:
        raise OSError(f"{file} can't be read")
    return f"text of {file}"


@action(reads=["file"], writes=["text"])
async def review(file: str, context: Context) -> str:
    said: Any = await context.ask("verdict", {"question": f"{file}?", "schema": VERDICT})
    return f"{said['verdict']} {said['severity']}"


def application(act: Any, **more: Any) -> Application[Any]:
    step = fan_out(act, over="files", item="file", key=str, into="texts", take="text", **more)
    return Application(step, name=act.name)


@asynccontextmanager
async def page_over(
    store: MemoryStore, *applications: Application[Any]
) -> AsyncGenerator[AsyncClient]:
    app = create_app(store, applications, token=TOKEN)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


async def act(client: AsyncClient, verb: str, path: str, **fields: str) -> Response:
    form = {"csrf": Door(TOKEN).form_value, **fields}
    return await client.post(f"/do/{verb}/{path}", data=form)


async def status_of(client: AsyncClient, run_id: str) -> str:
    [status] = re.findall(r'class="title".*?pill (\w+)', (await client.get(f"/runs/{run_id}")).text)
    return status


async def test_a_failed_run_is_resumed_where_it_stood():
    store = MemoryStore()
    reads = application(read, on_error="fail")
    reads.store = store
    with pytest.raises(ExceptionGroup):
        await reads.run({"files": ["a", "b"]}, id="r")
    async with page_over(store, reads) as client:
        assert await status_of(client, "r") == "failed"
        broken.discard("b")
        try:
            assert (await act(client, "resume", "r")).status_code == 303
            await anyio.sleep(3)
        finally:
            broken.add("b")
        assert await status_of(client, "r") == "succeeded"


async def test_a_run_that_goes_on_when_the_server_ends_can_be_resumed():
    store = MemoryStore()
    reads = application(read, on_error="fail", limits=Limits(1))
    reads.store = store
    with pytest.raises(ExceptionGroup):
        await reads.run({"files": ["b", *map(str, range(1000))]}, id="r")
    broken.discard("b")
    try:
        async with page_over(store, reads) as client:
            assert (await act(client, "resume", "r")).status_code == 303
            await anyio.sleep(2.5)
            began = anyio.current_time()
        assert anyio.current_time() - began < 1
        summary = await store.summary("r")
        assert summary is not None
        assert (summary.status, summary.holder) == ("running", "")
        result = await reads.run(id="r")
        assert len(result.state["texts"]) == 1001
    finally:
        broken.add("b")


async def test_a_secret_is_on_no_page():
    store = MemoryStore()
    secret = "a-secret-of-some-length"

    @action(reads=["token"], writes=["page"])
    async def sign_in(token: str) -> str:
        raise ValueError(f"{token} was refused")

    app = Application(sign_in, name="sign in", store=store, secret={"token"})
    with pytest.raises(ValueError, match="refused"):
        await app.run({"token": secret}, id="r")
    async with page_over(store, app) as client:
        for view in ("", "history", "values", "graph"):
            page = await client.get(f"/runs/r?view={view}")
            assert page.status_code == 200
            assert secret not in page.text


async def test_failed_children_are_run_again():
    store = MemoryStore()
    reads = application(read, on_error="collect")
    reads.store = store
    await reads.run({"files": ["a", "b"]}, id="r")
    async with page_over(store, reads) as client:
        assert "Run the 1 failed again" in words((await client.get("/runs/r")).text)
        broken.discard("b")
        try:
            assert (await act(client, "retry", "r")).status_code == 303
            await anyio.sleep(3)
        finally:
            broken.add("b")
        page = words((await client.get("/runs/r")).text)
        assert "failed" not in page.replace("failed first", "")


async def test_a_question_is_answered_by_the_form_of_its_schema():
    store = MemoryStore()
    reviews = application(review)
    reviews.store = store
    await reviews.run({"files": ["a"]}, id="r")
    async with page_over(store, reviews) as client:
        page = Page((await client.get("/runs/r")).text)
        [form] = [a for a in page.all("form") if "/do/answer/" in a["action"]]
        path = form["action"].partition("/do/answer/")[2]
        [id_] = [a["value"] for a in page.all("input", name="id")]
        fields = {"answer.verdict": "merge", "answer.severity": "9"}
        refused = await act(client, "answer", path, id=id_, **fields)
        assert refused.status_code == 409
        assert "at most 5" in words(refused.text)
        fields["answer.severity"] = "3"
        assert (await act(client, "answer", path, id=id_, **fields)).status_code == 303
        await anyio.sleep(1)
        assert await status_of(client, "r") == "succeeded"
        again = await act(client, "answer", path, id=id_, **fields)
        assert "no longer open" in words(again.text)
    assert (await reviews.run(id="r")).state["texts"] == {"a": "merge 3"}


@pytest.mark.parametrize("has_reported", [False, True])
async def test_a_run_that_is_not_watched_takes_no_requests_and_the_page_says_so(
    has_reported: bool,  # a parameter
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("shoal.watch._overview._SILENT", -1.0)
    store = MemoryStore()
    reads = application(read, on_error="fail", limits=Limits(1))
    reads.store = store
    state = {"files": ["b", *"cdef"]}
    if has_reported:
        async with Runtime(watch=True) as runtime:
            with pytest.raises(ExceptionGroup):
                await reads.run(state, id="r", runtime=runtime)
    broken.discard("b")
    try:
        async with Runtime(watch=False) as runtime, page_over(store) as client:
            handle = await reads.start(state, id="r", runtime=runtime)
            await anyio.sleep(0.1)
            assert "takes no requests from pages" in words((await client.get("/runs/r")).text)
            refused = await act(client, "cancel", "r", reason="x")
            assert refused.status_code == 409
            assert "leave out watch=False" in words(refused.text)
            for form in Page((await client.get("/runs/r")).text).all("form"):
                assert "/do/" not in form["action"], "what the process wouldn't take isn't offered"
            assert (await handle.result()).status == "succeeded"
    finally:
        broken.add("b")


async def test_a_watched_run_has_a_moment_to_report_before_a_request_is_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("shoal.watch._overview._SILENT", -1.0)
    store = MemoryStore()
    reads = application(read, on_error="collect")
    async with Runtime(store=store, watch=True) as runtime, page_over(store) as client:
        handle = await reads.start({"files": ["a"]}, id="r", runtime=runtime)
        assert (await act(client, "cancel", "r", reason="x")).status_code == 303
        assert await handle.wait_ended() == "cancelled"


async def test_a_limit_is_changed_and_paused_and_a_refusal_says_why():
    store = MemoryStore()
    reads = application(read, on_error="collect", limits=Limits(1))
    async with Runtime(store=store, watch=True) as runtime, page_over(store) as client:
        handle = await reads.start({"files": ["a", *"cdefghi"]}, id="r", runtime=runtime)
        await anyio.sleep(0.3)
        form = {"owner": "texts", "part": "-1", "n": "3"}
        assert (await act(client, "limit", "r", **form)).status_code == 303
        (steered,) = await Queries(store).steered("r")
        assert (steered.what, steered.by) == ("change limits", "the page")
        refused = await act(client, "limit", "r", owner="nobody", part="0", n="3")
        assert refused.status_code == 409
        assert "there is no limit of 'nobody' here" in words(refused.text)
        assert await handle.wait_ended() == "succeeded"


async def test_a_question_is_answered_while_the_run_goes_on_elsewhere():
    store = MemoryStore()

    @action(reads=["file"], writes=["text"])
    async def ask_or_wait(file: str, context: Context) -> str:
        said = file
        if file == "a":
            said = str(await context.ask("verdict", "a?"))
        await anyio.sleep(20 if file == "a" else 30)
        return said

    asks = application(ask_or_wait)
    async with Runtime(store=store, watch=True) as runtime, page_over(store) as client:
        handle = await asks.start({"files": ["a", "b"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        page = Page((await client.get("/runs/r")).text)
        assert "It goes on with it at once if the fan-out" in words(page.text)
        [form] = [a for a in page.all("form") if "/do/answer/" in a["action"]]
        path = form["action"].partition("/do/answer/")[2]
        [id_] = [a["value"] for a in page.all("input", name="id")]
        assert (await act(client, "answer", path, id=id_, answer="yes")).status_code == 303
        await anyio.sleep(1)
        text = words((await client.get("/runs/r")).text)
        assert "texts0 of 2 · 2 running" in text
        assert "arunning" in text, "it goes on"
        assert "taken up" not in text
        result = await handle.result()
    assert result.status == "succeeded"
    assert result.state["texts"] == {"a": "yes", "b": "b"}


async def test_an_answer_that_nothing_takes_up_is_said_to_wait_for_the_next_resume():
    store = MemoryStore()

    @action(reads=["file"], writes=["text"])
    async def ask_or_wait(file: str, context: Context) -> str:
        if file == "a":
            return str(await context.ask("verdict", "a?"))
        await anyio.sleep(30)
        return file

    inner = application(ask_or_wait).graph
    outer = fan_out(inner, over="groups", item="files", take="texts", into="all")
    asks = Application(outer, name="outer", store=store)
    async with page_over(store, asks) as client:
        async with Runtime(watch=True) as runtime:
            handle = await asks.start({"groups": [["a"], ["b"]]}, id="r", runtime=runtime)
            await anyio.sleep(1)
            page = Page((await client.get("/runs/r")).text)
            [form] = [a for a in page.all("form") if "/do/answer/" in a["action"]]
            path = form["action"].partition("/do/answer/")[2]
            [id_] = [a["value"] for a in page.all("input", name="id")]
            assert (await act(client, "answer", path, id=id_, answer="yes")).status_code == 303
            await anyio.sleep(1)
            page = words((await client.get("/runs/r")).text)
            assert "is taken up when the run is run again: app.run(id='r')" in page
            assert (await handle.result()).status == "halted"
        page = (await client.get("/runs/r")).text
        assert "is taken up when the run is run again: app.run(id='r'), or here." in words(page)
        assert "/do/resume/r" in page
        assert (await act(client, "resume", "r")).status_code == 303
        await anyio.sleep(1)
        assert await status_of(client, "r") == "succeeded"


@asynccontextmanager
async def page_mounted(store: MemoryStore, *applications: Application[Any], runtime: Runtime):
    page = create_app(store, applications, token=TOKEN, runtime=runtime)
    async with client_of(page) as client:  # the lifespan of a mounted application is not run
        yield client


async def test_a_mounted_page_answers_and_retries_in_the_runtime_of_its_service():
    store = MemoryStore()
    reviews, reads = application(review), application(read, on_error="collect")
    reviews.store = reads.store = store
    await reviews.run({"files": ["a"]}, id="r")
    await reads.run({"files": ["a", "b"]}, id="s")
    broken.discard("b")
    try:
        async with (
            no_leaks(),
            Runtime() as runtime,
            page_mounted(store, reviews, reads, runtime=runtime) as client,
        ):
            page = Page((await client.get("/runs/r")).text)
            [form] = [a for a in page.all("form") if "/do/answer/" in a["action"]]
            path = form["action"].partition("/do/answer/")[2]
            [id_] = [a["value"] for a in page.all("input", name="id")]
            fields = {"answer.verdict": "merge", "answer.severity": "3"}
            assert (await act(client, "answer", path, id=id_, **fields)).status_code == 303
            assert (await act(client, "retry", "s")).status_code == 303
            await anyio.sleep(3)
            assert await status_of(client, "r") == await status_of(client, "s") == "succeeded"
            assert "failed" not in words((await client.get("/runs/s")).text).replace(
                "failed first", ""
            )
    finally:
        broken.add("b")


async def test_a_mounted_page_leaves_its_runs_to_the_runtime_of_its_service(
    monkeypatch: pytest.MonkeyPatch,
):
    store = MemoryStore()
    monkeypatch.setattr("tests.watch.ui.test_actions.broken", {"b", "c"})
    reads = application(read, on_error="collect", limits=Limits(1))
    reads.store = store
    await reads.run({"files": ["b", "c"]}, id="s")
    async with (
        no_leaks(),
        Runtime() as runtime,
        page_mounted(store, reads, runtime=runtime) as client,
    ):
        assert (await act(client, "retry", "s")).status_code == 303
        await runtime.drain(0)
    summary = await store.summary("s")
    assert summary is not None
    assert (summary.status, summary.holder) == ("running", "")


async def test_a_run_with_secrets_is_not_offered_to_be_run_again():
    store = MemoryStore()
    app = Application(
        fan_out(review, over="files", item="file", key=str, into="texts", take="text"),
        name="review",
        store=store,
    )
    started = State({"files": ["a"], "token": "a-secret-of-some-length"}, secret={"token"})
    await app.run(started, id="r")
    async with page_over(store, app) as client:
        page = await client.get("/runs/r")
        answered = await act(client, "answer", "r", id="x")
        resumed = await act(client, "resume", "r")
    assert "a?" in words(page.text)
    assert "the secret field token, saved nowhere" in words(page.text)
    assert not [a for a in Page(page.text).all("form") if "/do/" in a["action"]]
    assert resumed.status_code == answered.status_code == 409
    assert "the secret field token" in words(resumed.text)


async def test_a_run_of_this_server_is_cancelled_and_so_is_one_of_its_children():
    store = MemoryStore()
    reads = application(read, on_error="collect")
    async with Runtime(store=store) as runtime:
        app = create_app(store, [reads], token=TOKEN, runtime=runtime)
        async with client_of(app) as client:
            handle = await reads.start({"files": ["a", "c"]}, id="r", runtime=runtime)
            await anyio.sleep(0.5)
            child = quote("r/texts:0:read:a")
            assert (await act(client, "cancel", child, reason="not a")).status_code == 303
            result = await handle.result()
            assert {*result.state["texts"]} == {"c"}
            handle = await reads.start({"files": ["a", "c"]}, id="s", runtime=runtime)
            await anyio.sleep(0.5)
            assert (await act(client, "cancel", "s", reason="not any")).status_code == 303
            assert await handle.wait_ended() == "cancelled"
            page = words((await client.get("/runs/s")).text)
    assert "not any" in page


async def test_a_run_of_this_server_is_drained_and_run_again():
    store = MemoryStore()
    reads = application(read, limits=Limits(1))
    async with Runtime(store=store) as runtime:
        app = create_app(store, [reads], token=TOKEN, runtime=runtime)
        async with client_of(app) as client:
            handle = await reads.start({"files": ["c", "d"]}, id="r", runtime=runtime)
            await anyio.sleep(0.5)
            assert "Drain the run" in (await client.get("/runs/r")).text
            assert (await act(client, "drain", "r", reason="later")).status_code == 303
            assert await handle.wait_ended() == "halted"
            page = words((await client.get("/runs/r")).text)
            assert "later" in page
            assert "Run it again from where it stood" in page
            assert "answer" not in page
            assert (await act(client, "resume", "r")).status_code == 303
            (again,) = runtime.runs()
            assert await again.wait_ended() == "succeeded"


async def test_what_cannot_be_done_is_said():
    store = MemoryStore()
    reads, reviews = application(read, on_error="collect"), application(review)
    reads.store = store
    await reads.run({"files": ["a"]}, id="r")
    async with page_over(store, reviews) as client:
        texts = [
            words((await act(client, verb, "r", reason="x")).text)
            for verb in ("resume", "retry", "cancel")
        ]
        unknown = await act(client, "resume", "nobody")
    assert "isn't known here" in texts[0]
    assert "isn't known here" in texts[1]
    assert "No process executes this run" in texts[2]
    assert unknown.status_code == 404


async def test_runs_that_actions_have_started_are_linked_both_ways():
    store = MemoryStore()
    reads = application(read, on_error="collect")
    reads.store = store

    @action(writes=["count"])
    async def start() -> int:
        result = await reads.run({"files": ["a"]}, id="inner")
        return len(result.state["texts"])

    await Application(start, name="outer", store=store).run({}, id="outer")
    async with page_over(store) as client:
        outer = Page((await client.get("/runs/outer")).text)
        inner = await client.get("/runs/inner")
    assert "/runs/inner" in outer.links
    assert "/runs/outer" in Page(inner.text).links
    assert "in its step start" in words(inner.text)


async def test_counts_are_those_of_the_store_at_each_look():
    store = MemoryStore()
    reads = application(read, on_error="collect", limits=Limits(5))
    files = [f"{n}" for n in range(40)]
    async with Runtime(store=store) as runtime, page_over(store) as client:
        handle = await reads.start({"files": files}, id="r", runtime=runtime)
        seen = set[str]()
        while handle.status is None:
            counts = await store.counts(RunPath(run_id="r"))
            page = words((await client.get("/runs/r")).text)
            [shown] = re.findall(r"([\d,]+) in the store", page) or ["0"]
            assert int(shown) == sum(counts.values())
            seen.add(shown)
            await anyio.sleep(0.3)
    assert len(seen) > 1


@dataclass(frozen=True)
class File:
    name: str


async def test_children_that_have_ended_are_called_by_the_title_of_a_known_application():
    store = MemoryStore()

    @action(reads=["file"], writes=["text"])
    async def show(file: File) -> str:
        return file.name

    def titled(title: Any) -> Application[Any]:
        step = fan_out(show, over="files", item="file", into="texts", title=title, name="files")
        return Application(step, name="shows", store=store)

    def by_name(state: State) -> str:
        file: Any = state["file"]
        return f"the file <{file.name}>"

    app = titled(by_name)
    await app.run({"files": [File("a"), File("b")]}, id="r")

    def broken_title(state: State) -> str:
        raise SystemExit(state["other"])

    async with page_over(store, app) as client, page_over(store) as other:
        page = await client.get("/runs/r")
        child = await client.get("/runs/r/files:0:show:%231")
        unknown = await other.get("/runs/r")
    assert "the file <a>succeeded" in words(page.text)
    assert "<h1>the file &lt;b&gt;</h1>" in child.text
    assert "the file" not in unknown.text
    async with page_over(store, titled(broken_title)) as client:
        assert "the file" not in (await client.get("/runs/r")).text


@pytest.mark.parametrize("is_over", [True, False])
async def test_a_drawing_counts_the_children_of_nested_fan_outs(
    is_over: bool,  # a parameter
):
    store = MemoryStore()
    inner = application(read, on_error="collect").graph
    outer = fan_out(inner, over="groups", item="files", take="texts", into="all", limits=Limits(2))
    app = Application(outer, name="outer", store=store)
    async with Runtime(watch=True) as runtime, page_over(store, app) as client:
        state = {"groups": [["a", "b"], ["c"], ["d", "e", "f"]]}
        handle = await app.start(state, id="r", runtime=runtime)
        if is_over:
            await handle.result()
        else:
            await anyio.sleep(1.5)
        drawing = words((await client.get("/runs/r?view=graph")).text)
        await handle.wait_ended()
    if is_over:
        assert "5 succeeded · 1 failed" in drawing
    else:
        assert "2 succeeded · 1 failed · 3 running" in drawing


async def test_a_drawing_says_how_many_runs_it_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shoal.watch.ui._pages.NESTED", 2)
    store = MemoryStore()
    inner = application(read, on_error="collect").graph
    outer = fan_out(inner, over="groups", item="files", take="texts", into="all")
    app = Application(outer, name="outer", store=store)
    await app.run({"groups": [["a", "b"], ["c"], ["d", "e", "f"]]}, id="r")
    await app.run({"groups": [["a", "b"], ["c"]]}, id="s")
    async with page_over(store, app) as client:
        drawing = words((await client.get("/runs/r?view=graph")).text)
        whole = words((await client.get("/runs/s?view=graph")).text)
    assert "2 succeeded · 1 failed" in drawing
    assert "in the first 2 runs that have any" in drawing
    assert "runs that have any" not in whole


@pytest.mark.services
@pytest.mark.realtime
async def test_a_store_on_a_server_is_shown(postgres: PostgresServer):
    store = PostgresStore(postgres.address(), schema=postgres.new_schema())
    reviews, reads = application(review), application(read, on_error="collect")
    async with store:
        reviews.store = reads.store = store
        await reviews.run({"files": ["a"]}, id="r")
        await reads.run({"files": ["a", "b"]}, id="s")
        async with client_of(create_app(store, [reviews, reads], token=TOKEN)) as client:
            assert "Question “verdict” of a" in words((await client.get("/runs/r")).text)
            for view in ("", "timeline", "history", "values", "time", "graph"):
                page = await client.get(f"/runs/s?view={view}")
                assert page.status_code == 200
            assert "b can't be read" in words((await client.get("/runs/s")).text)


@action(reads=["file"], writes=["text"], name="slow")
async def slow(file: str) -> str:
    await anyio.sleep(0.1 if file != "hangs" else 60)
    return file


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.realtime
async def test_two_workers_on_one_server_are_steered_from_one_page(postgres: PostgresServer):
    address, schema = postgres.address(), postgres.new_schema()
    async with AsyncExitStack() as stack:
        handles: list[RunHandle[Any]] = []
        for name in "ab":
            store = await stack.enter_async_context(PostgresStore(address, schema=schema))
            runtime = await stack.enter_async_context(Runtime(store=store))
            state = {"files": ["hangs", *map(str, range(6))]}
            slowly = application(slow, limits=Limits(2), on_error="ignore", name="slowly")
            handles.append(await slowly.start(state, id=name, runtime=runtime))
        store = await stack.enter_async_context(PostgresStore(address, schema=schema))
        client = await stack.enter_async_context(client_of(create_app(store, token=TOKEN)))
        await anyio.sleep(0.3)
        assert (await act(client, "pause", "a")).status_code == 303
        assert (handles[0].paused is not None, handles[1].paused) == (True, None)
        faster = {"owner": "slowly", "part": "-1", "n": "9"}
        assert (await act(client, "limit", "b", **faster)).status_code == 303
        assert [one.what for one in await Queries(store).steered("b")] == ["change limits"]
        links = Page((await client.get("/limits")).text).links
        assert {"/runs/a", "/runs/b"} <= {*links}, "each has limits of its own"
        assert (await act(client, "unpause", "a")).status_code == 303
        for run_id in "ab":
            path = f"{run_id}/slowly:0:slow:hangs"
            assert (await act(client, "cancel", path, reason="it hangs")).status_code == 303
        assert [(await one.result()).status for one in handles] == ["succeeded"] * 2
        refused = await act(client, "cancel", "a")
        assert "No process executes this run now" in words(refused.text)


@pytest.mark.parametrize("where", ["in another process", "without a process"])
async def test_a_run_is_paused_and_goes_on_again(where: str):
    store = MemoryStore()
    reads = application(read, limits=Limits(1))
    state = {"files": [*"acdefg"]}
    async with Runtime(store=store, watch=True) as runtime:
        handle = await reads.start(state, id="r", runtime=runtime)
        await anyio.sleep(0.5)
        if where == "without a process":
            died = store.copy()
            handle.cancel("its process dies")
            await handle.wait_ended()
            store = died
        async with page_over(store) as client:
            page = Page((await client.get("/runs/r")).text)
            assert [a for a in page.all("form") if a["action"].endswith("/do/pause/r")]
            assert (await act(client, "pause", "r", reason="lunch")).status_code == 303
            await anyio.sleep(0.5)
            assert (await act(client, "pause", "r", reason="twice")).status_code == 303
            page = Page((await client.get("/runs/r")).text)
            assert re.search(r"paused since \S+ \S+ by the page \(lunch\)", words(page.text))
            assert [a for a in page.all("form") if a["action"].endswith("/do/unpause/r")]
            history = words((await client.get("/runs/r?view=history")).text)
            assert "was steered from outside" in history
            assert "pause by the page: reason=lunch" in history
            assert (await act(client, "unpause", "r")).status_code == 303
            await anyio.sleep(0.5)
            assert "paused since" not in words((await client.get("/runs/r")).text)
            if where == "in another process":
                assert (await handle.result()).status == "succeeded"
                refused = await act(client, "pause", "r")
                assert (refused.status_code, "has succeeded" in refused.text) == (409, True)


async def test_the_form_of_a_typed_answer_fits_its_type():
    @action(reads=["file"], writes=["text"])
    async def rate(file: str, context: Context) -> str:
        stars = await context.ask("stars", f"{file}?", answer=Annotated[int, Field(ge=1, le=5)])
        colour = await context.ask("colour", answer=Literal["red", "blue"])
        return f"{stars} {colour}"

    store = MemoryStore()
    rates = application(rate)
    rates.store = store
    await rates.run({"files": ["a"]}, id="r")
    async with page_over(store, rates) as client:
        for name, given, wrong in [("stars", "4", "9"), ("colour", "red", "green")]:
            page = Page((await client.get("/runs/r")).text)
            [form] = [a for a in page.all("form") if "/do/answer/" in a["action"]]
            if name == "stars":
                [field] = page.all("input", name="answer")
                assert field["type"] == "number"
            else:
                assert page.all("select", name="answer") or page.all("input", name="answer")
            path = form["action"].partition("/do/answer/")[2]
            [id_] = [a["value"] for a in page.all("input", name="id")]
            refused = await act(client, "answer", path, id=id_, answer=wrong)
            assert refused.status_code in (400, 409, 422)
            assert (await act(client, "answer", path, id=id_, answer=given)).status_code == 303
            await anyio.sleep(1)
    assert (await rates.run(id="r")).state["texts"] == {"a": "4 red"}
