"""The application: routes, and how requests become pages.

Each page has one address for three answers: the whole page; ``?as=fragment``, its live part; and
``?as=stream``, the live part again and again as server-sent events.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, cast, final
from urllib.parse import parse_qsl

from anyio import create_task_group, current_time
from anyio.abc import TaskGroup
from markupsafe import escape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from shoal._errors.exceptions import DefinitionError, StoreFailed, UnknownRun
from shoal._events.paths import parse_path
from shoal._runtime.application import Application
from shoal._runtime.runtime import Runtime
from shoal.stores._protocol import Browses, Store
from shoal.watch._queries import Queries

from ._commands import CannotDo, Commands
from ._forms import BadAnswer
from ._guard import CSRF, LOOPBACK, Door, Guard
from ._pages import CHARACTERS, Page, Pages
from ._rendering import prepare, rendered, static
from ._secrets import Secrets
from ._streams import Streams
from ._urls import Urls, own_address

SPEAKS = 15.0
"""Seconds between two headlines that a screen reader reads out, while the status stays the same."""

FOREVER = "public, max-age=31536000, immutable"
"""For static files, whose addresses have a hash of their content."""

MOST_SENT = 1_000_000
"""Bytes of a form that is accepted."""

Build = Callable[[Urls], Awaitable[Page]]


def create_app(
    store: Browses,
    applications: Iterable[Application[Any]] = (),
    *,
    token: str | None = None,
    hosts: Sequence[str] = LOOPBACK,
    runtime: Runtime | None = None,
    name: str = "",
) -> Starlette:
    """Return a Starlette application that shows the runs of a store, and lets people steer them.

    Serve it alone (``shoal ui`` does), or mount it in an application of Starlette or FastAPI:
    ``app.mount("/shoal", create_app(store))``. It reads the store only when a page is open.

    Without a token, everybody who reaches the application can read all pages, and nothing can be
    changed. With one, all pages need it: as ``?token=`` once, then as a cookie, or as a bearer.

    Args:
        store: The store. It should implement ``shoal.stores.Inspects``, as those of shoal do. If
            it implements ``KeepsReports``, pages show what runs now, and can steer runs of other
            processes.
        applications: Applications whose runs can be resumed, retried and answered here, and whose
            graphs are drawn.
        token: A secret that people need; at least 16 characters.
        hosts: The names under which the application may be reached, without ports; ``["*"]`` if
            the application that it is mounted in checks that.
        runtime: Where runs are executed. Served alone, the application opens one of its own; a
            mounted application needs one to execute runs, because its lifespan is not run.
        name: What the pages call the store.

    Raises:
        DefinitionError: The token is too short, or two applications have one name.

    Examples:
        >>> from shoal import SQLiteStore
        >>> from shoal.watch.ui import create_app
        >>> app = create_app(SQLiteStore("runs.db"), token="a-long-secret-of-yours")
    """
    ui = UI(
        Queries(store),
        store,
        applications=applications,
        token=token,
        hosts=hosts,
        runtime=runtime,
        name=name,
    )
    return ui.app


@final
class UI:
    """The handlers of the application, and what they share."""

    def __init__(
        self,
        queries: Queries,
        store: Browses,
        *,
        applications: Iterable[Application[Any]] = (),
        token: str | None = None,
        hosts: Sequence[str] = LOOPBACK,
        runtime: Runtime | None = None,
        name: str = "",
    ) -> None:
        """See ``create_app``."""
        if token is not None and len(token) < 16:  # noqa: PLR2004 # see the docstring
            raise DefinitionError("create_app(token=...) takes at least 16 characters")
        by_name: dict[str, Application[Any]] = {}
        for each in applications:
            if by_name.setdefault(each.name, each) is not each:
                msg = f"create_app(applications=...) has two of the name {each.name!r}"
                raise DefinitionError(msg)
        prepare()
        self._queries = queries
        self._store = store
        secrets = Secrets(store, by_name)
        self._pages = Pages(queries, by_name, secrets)
        self._can_execute = bool(by_name)
        self._runtime = runtime
        self._tasks: TaskGroup | None = None
        self._door = None if token is None else Door(token)
        self._name = name
        self._commands = Commands(
            queries, store, by_name, lambda: self._runtime, lambda: self._tasks, secrets=secrets
        )
        self.streams = Streams()
        routes = [
            Route("/", self._runs, name="runs"),
            Route("/limits", self._limits, name="limits"),
            Route("/runs/{path:path}", self._run, name="run"),
            Route("/values/{what}/{path:path}", self._value, name="value"),
            Route("/do/{verb}/{path:path}", self._do, methods=["POST"], name="do"),
            Route("/token", self._take_token, methods=["POST"], name="token"),
            Route("/static/{name}", self._static, name="static"),
        ]
        guard = Middleware(Guard, door=self._door, hosts=hosts, refuse=self._refuse)
        self.app = Starlette(
            routes=routes,
            middleware=[guard],
            lifespan=self._lifespan,
            exception_handlers={
                UnknownRun: self._on_unknown,
                StoreFailed: self._on_failed,
                CannotDo: self._on_refused,
                BadAnswer: self._on_refused,
                HTTPException: self._on_http_error,
            },
        )
        self.app.state.streams = self.streams

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            is_ours = self._runtime is None and self._can_execute
            if is_ours:
                store = cast("Store", self._store)
                self._runtime = await stack.enter_async_context(Runtime(store=store))
                stack.callback(setattr, self, "_runtime", None)
            self._tasks = await stack.enter_async_context(create_task_group())
            try:
                yield
            finally:
                self.streams.close()
                # Runs would be awaited to their ends, and be cancelled for good if their callers
                # were cancelled first. Drained, they can be resumed.
                if is_ours and self._runtime is not None:
                    await self._runtime.drain(0)
                self._tasks.cancel_scope.cancel()
                self._tasks = None

    # -- pages -------------------------------------------------------------------------------------

    async def _runs(self, request: Request) -> Response:
        return await self._answer(
            request, lambda urls: self._pages.runs(request.query_params, urls), "runs"
        )

    async def _run(self, request: Request) -> Response:
        path: str = request.path_params["path"]
        return await self._answer(
            request, lambda urls: self._pages.run(path, request.query_params, urls), "runs"
        )

    async def _limits(self, request: Request) -> Response:
        return await self._answer(request, lambda _: self._pages.limits(), "limits")

    async def _answer(self, request: Request, build: Build, place: str) -> Response:
        wanted = request.query_params.get("as", "")
        urls = self._urls(request)
        if wanted == "stream":
            return await self._stream(request, build, urls)
        page = await build(urls)
        values = self._shared(page, urls)
        if wanted == "fragment":
            return HTMLResponse(_fragment(page, values))
        query = [(k, v) for k, v in request.query_params.multi_items() if k != "as"]
        stream = own_address(request.scope, [*query, ("as", "stream")])
        values |= {"place": place, "stream": stream}
        return HTMLResponse(rendered("base.html", values))

    async def _stream(self, request: Request, build: Build, urls: Urls) -> Response:
        await build(urls)  # an unknown run is a 404 before the stream begins
        spoken, spoken_at, status = "", 0.0, ""

        async def render() -> tuple[str | None, bool]:
            nonlocal spoken, spoken_at, status
            try:
                page = await build(urls)
            except (UnknownRun, StoreFailed):
                # A child may be in no report any more, and not yet in the store; and a store that
                # can't be read may be readable later. The page keeps what it shows.
                return None, True
            values = self._shared(page, urls)
            now = current_time()
            if values["status_now"] != status or now - spoken_at >= SPEAKS:
                spoken, spoken_at, status = values["spoken"], now, values["status_now"]
            return _fragment(page, {**values, "spoken": spoken}), page.is_live

        return StreamingResponse(
            self.streams.stream(request, self._queries.mark, render),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    def _shared(self, page: Page, urls: Urls) -> dict[str, Any]:
        overview = page.values.get("o")
        return {
            **page.values,
            "page": page,
            "urls": urls,
            "door": self._door,
            "where": self._name,
            "spoken": "" if overview is None else overview.headline.text,
            "status_now": "" if overview is None else overview.status,
        }

    async def _value(self, request: Request) -> Response:
        text, what = request.path_params["path"], request.path_params["what"]
        is_all = "all" in request.query_params
        value = await self._pages.value(text, what, characters=None if is_all else CHARACTERS)
        if value is None:
            raise HTTPException(404, f"this run has no {what}")
        if is_all:
            # Halves of surrogate pairs are in strings alone, and are written as JSON writes them.
            text = value.text.encode("utf-8", "backslashreplace")
            return Response(text, media_type="application/json")
        urls = self._urls(request)
        page = Page(template="value-page.html", title=what.capitalize())
        values = {"value": value, "what": what, "path": parse_path(text)}
        values |= self._shared(page, urls)
        if request.headers.get("hx-request"):
            return HTMLResponse(rendered("value.html", values))
        return HTMLResponse(rendered("base.html", {**values, "place": "runs", "stream": None}))

    async def _static(self, request: Request) -> Response:
        found = static().files.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "there is no such file")
        return Response(found[0], media_type=found[1], headers={"cache-control": FOREVER})

    # -- changes -----------------------------------------------------------------------------------

    async def _do(self, request: Request) -> Response:
        sent = await self._form(request)
        path = parse_path(request.path_params["path"])
        urls = self._urls(request)
        back = urls.run(path.root)
        match request.path_params["verb"]:
            case "cancel":
                await self._commands.cancel(path, sent.get("reason", "").strip() or "by the page")
                back = urls.run(path)
            case "pause":
                await self._commands.pause(path, sent.get("reason", "").strip())
            case "unpause":
                await self._commands.unpause(path)
            case "resume":
                await self._commands.resume(path)
            case "retry":
                await self._commands.retry(path)
            case "drain":
                await self._commands.drain(path, sent.get("reason", "").strip() or "by the page")
            case "answer":
                await self._commands.answer(path, sent.get("id", ""), sent)
            case "limit":
                arguments = _limit_arguments(sent)
                if sent.get("pause"):
                    place = {name: arguments[name] for name in ("owner", "part")}
                    await self._commands.pause_limit(path, place, ends=sent["pause"] == "no")
                    return RedirectResponse(urls.limits(), 303)
                if not arguments.keys() & {"n", "max_rate"}:
                    text = "The form has the numbers that the limit had before."
                    return self._message(request, "Nothing was changed", text, 200)
                await self._commands.change_limit(path, arguments)
                back = urls.limits()
            case verb:
                raise HTTPException(404, f"there is no {verb!r}")
        return RedirectResponse(back, 303)

    async def _form(self, request: Request) -> dict[str, str]:
        """Return the fields of a form that may change something."""
        if self._door is None:
            raise HTTPException(403, "Nothing can be changed here: there is no token.")
        form = await _fields(request)
        if not self._door.allows(request, form.get(CSRF, "")):
            raise HTTPException(403, "This form doesn't come from this page. Reload the page.")
        return form

    async def _take_token(self, request: Request) -> Response:
        form = await _fields(request)
        token, after = form.get("token", ""), form.get("next", "")
        if self._door is None or not self._door.opens(token.strip()):
            return self._token_page(request, after, is_wrong=True)
        urls = self._urls(request)
        is_ours = after.startswith("/") and not after.startswith(("//", "/\\"))
        return self._door.let_in(request, RedirectResponse(after if is_ours else urls.runs(), 303))

    # -- what is not a page ------------------------------------------------------------------------

    async def _refuse(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        query = request.query_params.multi_items()
        after = own_address(scope, query) if request.method == "GET" else ""
        await self._token_page(request, after)(scope, receive, send)

    def _token_page(self, request: Request, after: str, *, is_wrong: bool = False) -> Response:
        page = Page(template="token.html", title="Token")
        values = self._shared(page, self._urls(request)) | {"next": after, "wrong": is_wrong}
        values |= {"place": "", "stream": None, "where": ""}
        return HTMLResponse(rendered("base.html", values), 401)

    def _message(self, request: Request, title: str, text: str, status: int) -> Response:
        urls = self._urls(request)
        back = urls.runs()
        if "path" in request.path_params:
            with suppress(UnknownRun):  # then the way back is the list of runs
                back = urls.run(parse_path(request.path_params["path"]).root)
        if status == 404:  # noqa: PLR2004 # not found
            back = urls.runs()
        page = Page(template="message.html", title=title)
        values: Mapping[str, Any] = {"text": text, "back": back, "bad": status >= 500}  # noqa: PLR2004 # server errors
        values = {**self._shared(page, urls), **values, "place": "", "stream": None}
        return HTMLResponse(rendered("base.html", values), status)

    async def _on_unknown(self, request: Request, error: Exception) -> Response:
        similar = error.similar if isinstance(error, UnknownRun) else ""
        why = f"{error}; did you mean {similar!r}?" if similar else str(error)
        return self._message(request, "There is no such run", why, 404)

    async def _on_failed(self, request: Request, error: Exception) -> Response:
        return self._message(request, "The store can't be read now", str(error), 503)

    async def _on_refused(self, request: Request, error: Exception) -> Response:
        return self._message(request, "That was not done", str(error), 409)

    async def _on_http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = "Not found" if error.status_code == 404 else "That was not done"  # noqa: PLR2004 # not found
        return self._message(request, title, error.detail, error.status_code)

    def _urls(self, request: Request) -> Urls:
        return Urls(request.scope.get("root_path", ""), static().versions)


async def _fields(request: Request) -> dict[str, str]:
    """Read a form. Starlette's own way needs one more package, for files that forms upload."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "This takes a form of one of these pages.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_SENT:
            raise HTTPException(413, "That is more than a form may have.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000))
    except ValueError:
        raise HTTPException(400, "This is not a form.") from None


def _fragment(page: Page, values: dict[str, Any]) -> str:
    """Render the live part of a page; htmx takes the title out of it, for the browser's tab."""
    title = escape(f"{page.title} · shoal")
    return f"<title>{title}</title>{rendered(page.template, values).rstrip()}"


def _limit_arguments(sent: Mapping[str, str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"owner": sent.get("owner", "")}
    try:
        arguments["part"] = int(sent.get("part", ""))
        for name, read in (("n", int), ("max_rate", float)):
            if sent.get(name) and sent[name] != sent.get(f"was_{name}"):
                arguments[name] = read(sent[name])
    except ValueError:
        raise BadAnswer("A limit takes numbers.") from None
    numbers = [arguments[name] for name in ("n", "max_rate") if name in arguments]
    if not all(0 < number <= sys.float_info.max for number in numbers):
        raise BadAnswer("A limit takes a number above 0.")
    return arguments
