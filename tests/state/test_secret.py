"""Secret fields: read like any other, saved, told and shown nowhere, and given again on resume."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path, PureWindowsPath
from pprint import pformat
from typing import Any, cast
from urllib.parse import quote

import anyio
import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr, SecretStr

from shoal import (
    Application,
    Breaker,
    Cancelled,
    Codec,
    Context,
    Done,
    Each,
    Failed,
    Graph,
    Hook,
    Limits,
    MapActions,
    MemoryStore,
    MissingSecret,
    Result,
    Retry,
    RunConflict,
    Runtime,
    SQLiteStore,
    State,
    Task,
    action,
    fan_out,
    race,
    when,
)
from shoal.errors import (
    BadUse,
    DefinitionError,
    InvalidState,
    MissingField,
    SecretLeaked,
    StateError,
)
from shoal.events import (
    AttemptEnded,
    ChildEnded,
    ChildRerun,
    ChildStarted,
    SpanStarted,
    StepStarted,
)
from shoal.stores import Orphan
from shoal.testing import RecordingHook, no_leaks

pytestmark = pytest.mark.anyio

CANARY = "canary/7f3a 9c"
OTHER = "canary/another"
TRACES = (CANARY, OTHER, quote(CANARY), quote(CANARY, safe=""), repr(CANARY)[1:-1])


def secret(token: Any = CANARY, **fields: Any) -> State[Any]:
    return State({"token": token, **fields}, secret={"token"})


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, no log of it tells the secret."""
    with caplog.at_level(logging.DEBUG):
        yield
    logged = map(caplog.handler.format, caplog.get_records("call"))
    assert not [text for text in logged if traces_in(text)]


def traces_in(text: str) -> list[str]:
    return [trace for trace in TRACES if trace in text]


# -- a state ---------------------------------------------------------------------------------------


def shown_of(state: State[Any]) -> str:
    plain: Mapping[str, Any] = state.to_plain()
    written = Codec().encode({"state": state}, "value")
    copies = copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))
    assert [dict(one) for one in copies] == [{"n": 1}] * 3
    return " ".join((repr(state), str(state), pformat(state), json.dumps(plain), written))


async def test_a_secret_is_read_like_any_other_field_and_shown_nowhere():
    state = secret(n=1)
    assert (state["token"], state.get("token"), dict(state)["token"]) == (CANARY,) * 3
    assert ("token" in state, len(state)) == (True, 2)
    assert (state.to_plain(), state.data) == ({"n": 1}, {"n": 1})
    assert not traces_in(shown_of(state))
    assert repr(state) == "State({'token': <secret>, 'n': 1})"


async def test_it_stays_secret_in_what_is_made_of_the_state():
    for state in (
        State(secret(n=1)),
        secret(n=0).increment(n=1),
        secret("before", n=1).update(token=CANARY),
        State({"token": "before", "n": 1}).update(secret()),
    ):
        assert state["token"] == CANARY
        assert not traces_in(shown_of(state))
        assert not traces_in(repr(state._derivation))
    with pytest.raises(StateError) as caught:
        secret().append(token="more")
    assert not traces_in(str(caught.value))


@pytest.mark.parametrize(
    ("names", "says"),
    [("token", "a set of field names, not a str"), ({"tokne"}, "did you mean 'token'"), ({1}, "1")],
    ids=["a str", "unknown", "no name"],
)
async def test_what_can_not_be_secret_is_refused(names: Any, says: str):
    with pytest.raises(StateError, match=says) as caught:
        State({"token": CANARY}, secret=names)
    assert not traces_in(str(caught.value))


# -- everything that leaves ------------------------------------------------------------------------


class Stubborn(Exception):
    """Says what it holds as an object, as a client's errors say their URL."""

    def __init__(self, url: Url) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return f"404 for {self.url}"


@dataclass
class Request:
    url: str


class Holding(Exception):
    """Holds what could be saved."""

    def __init__(self, text: str, request: Request) -> None:
        super().__init__(text)
        self.request = request


class Url:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def __reduce__(self) -> Any:
        return Url, ("elsewhere",)


failing = {"map", "retry", "last"}


@action(reads=["n", "token"], writes=["page"], retry=Retry(2, on=ConnectionError))
async def fetch(n: int, token: str) -> str:
    if n == 1 and "map" in failing:
        raise OSError(2, f"no {token}", f"/home/{token}")
    if n == 2 and "retry" in failing:
        raise ConnectionError(f"GET https://example.org/?key={quote(token, safe='')}")
    if n == 3 and "map" in failing:
        try:
            raise KeyError(token)
        except KeyError as error:
            error.add_note(f"with {token!r}")
            raise Stubborn(Url(f"https://example.org/{token}")) from error
    return f"page {n}"


@action(reads=["token"], writes=["answer"])
async def loses(token: str) -> str:
    raise ExceptionGroup(f"all of {token}", [ValueError({"headers": [token.encode()]})])


@action(reads=["token"], writes=["answer"])
async def wins(token: str) -> str:
    await anyio.sleep(1)
    return "won"


@action(reads=["token"], writes=["items"])
async def streams(token: str) -> AsyncIterator[str | Result[str]]:
    yield "an item"
    yield Result(f"of {len(token)} characters")


@action(reads=["token"], writes=["own"])
async def own(token: str, context: Context) -> int:
    done = 0
    async with context.fan_out(name="tries") as group:
        group.start(fetch, secret(token, n=3), key="three")
        group.start(fetch, {"n": 4, "token": token}, key="four")
        async for outcome in group:
            done += isinstance(outcome, Done)
    try:
        with context.span("part", step="one"):
            raise ValueError(token)
    except ValueError:
        return done


@action(reads=["token"], writes=["done"])
async def last(token: str) -> str:
    if "last" in failing:
        raise PermissionError(f"refused: {token}")
    return "done"


class AskAll(MapActions):
    reads = ("token",)
    writes = ("asked",)

    def actions(self, state: State[Any], inputs: Mapping[str, Any]) -> Any:
        yield wins

    def reduce(self, state: State[Any], outcome: Done | Failed) -> State[Any]:
        assert isinstance(outcome, Done)
        return state.put("asked", outcome.act, outcome.value)


pages = fan_out(
    fetch, over="ns", item="n", key=str, into="pages", errors_into="errors", on_error="collect"
)
everything = Graph.chain(
    pages,
    race(loses, wins, into="answer"),
    Graph.chain(streams, name="node"),
    AskAll(),
    own,
    last,
    name="everything",
)


class Spans(Hook):
    """What tracing sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def _around(self, event: object) -> Generator[None]:
        self.seen.append(repr(event))
        try:
            yield
        except BaseException as error:
            self.seen += [str(error), repr(error), str(getattr(error, "__notes__", ""))]
            raise

    def around_step(self, event: StepStarted) -> AbstractContextManager[None]:
        return self._around(event)

    def around_span(self, event: SpanStarted) -> AbstractContextManager[None]:
        return self._around(event)


def texts_of(events: list[Any]) -> Iterator[str]:
    for event in events:
        yield repr(event)
        yield pformat(event)
        yield str(asdict(event))
        yield str(pickle.dumps(event))
        failed = getattr(event, "outcome", None) or event
        error = getattr(failed, "error", None)
        while error is not None:
            yield f"{error} {error!r} {getattr(error, '__notes__', '')}"
            error = error.__cause__ or error.__context__


def kept_in(store: MemoryStore | SQLiteStore, path: Path) -> Iterator[str]:
    if isinstance(store, MemoryStore):
        yield repr(store._roots)
        yield str(pickle.dumps(store._roots))
        return
    files = list(path.parent.glob(f"{path.name}*"))
    assert len(files) > 1, "it is open, with its log"
    for file in files:
        yield file.read_bytes().decode("latin-1")


@pytest.mark.parametrize("keeper", ["memory", "sqlite"])
async def test_a_secret_is_in_nothing_that_leaves_a_run(keeper: str, tmp_path: Path):
    """Through a map, a race, failures, retries, items, spans, a resume and a second secret."""
    failing.clear()
    failing.update(("map", "retry", "last"))
    path = tmp_path / "runs.db"
    store = SQLiteStore(path) if keeper == "sqlite" else MemoryStore()
    hook, spans = RecordingHook(), Spans()
    app = Application(everything, store=store, hooks=[hook, spans])
    said: list[str] = []
    async with Runtime() as runtime, store if isinstance(store, SQLiteStore) else nullcontext():
        with pytest.raises(PermissionError) as caught:
            await app.run(secret(ns=[0, 1, 2, 3]), id="x", runtime=runtime)
        said += [str(caught.value), repr(caught.value)]
        with pytest.raises(MissingSecret) as missing:
            await app.run(id="x", runtime=runtime)
        said += [str(missing.value)]
        assert (missing.value.fields, "id='x'" in said[-1]) == (("token",), True)
        assert "run(State({'token': ...}, secret={'token'}), id='x')" in said[-1]
        failing.clear()
        began = len(hook.events)
        result = await app.run(secret(OTHER), id="x", runtime=runtime)
        assert (result.state["done"], result.state["own"]) == ("done", 1)
        assert not hook.of(AttemptEnded)[began:], "what is done isn't done again"
        assert result.state["pages"] == {"0": "page 0"}
        assert sorted(result.state["errors"]) == list("123")
        result = await app.retry_failed("x", {"token": OTHER}, runtime=runtime)
        assert result.state["pages"] == {str(n): f"page {n}" for n in range(4)}
        again = await app.run(id="x", runtime=runtime)
        assert "token" not in again.state, "nothing was run, so nobody had to give it"
        said += [repr(result), repr(again), repr(result.outcomes("pages"))]
        said += [repr(one) async for one in result.all_outcomes("pages")]
        said += list(kept_in(store, path))
    retried = [event.error for event in hook.of(AttemptEnded) if event.next_in is not None]
    assert [type(error) for error in retried] == [ConnectionError] * 1, "it is what it was"
    found = [text for text in (*said, *texts_of(hook.events), *spans.seen) if traces_in(text)]
    assert not found, found[0]
    assert any("***" in text for text in spans.seen)


async def test_an_error_stays_what_it_is_and_says_less():
    @action(reads=["token"], writes=["out"])
    async def fails(token: str) -> str:
        raise given

    refused, group = OSError(13, f"no {CANARY}", CANARY), ExceptionGroup(CANARY, [KeyError(CANARY)])
    for given in (
        refused,
        group,
        OSError(Url(CANARY), "refused"),
        ValueError(Url(CANARY)),
        Stubborn(Url(CANARY)),
        Holding("failed", Request(CANARY)),
        UnicodeDecodeError("utf-8", f"{CANARY}\xff".encode("latin-1"), 14, 15, "no"),
    ):
        with pytest.raises(type(given)) as caught:
            await Application(fails).run(secret())
        assert caught.value is given, "the very same, for whoever catches it"
        text = f"{given} {given!r} {pickle.dumps(given)!r} {Codec().encode(given, 'error')}"
        assert not traces_in(text), text
        assert isinstance(given, Holding) or "***" in str(given) or given.args[2:] == (14, 15, "no")
    assert (refused.args, refused.errno, refused.filename) == ((13, "no ***"), 13, "***")
    assert repr(group.exceptions) == "(KeyError('***'),)"


@pytest.mark.parametrize("kind", ["elements", "tasks"])
async def test_what_a_source_raises_in_closing_is_masked(
    kind: str, caplog: pytest.LogCaptureFixture
):
    async def source(token: str, make: Callable[[int], Any]) -> AsyncIterator[Any]:
        try:
            for n in count():
                yield make(n)
        finally:
            raise RuntimeError(f"closing {token}")

    class Tasks(AskAll):
        limits = Limits(2)

        def tasks(self, state: State[Any], inputs: Mapping[str, Any]) -> Any:
            return source(state["token"], lambda n: Task(last, {"n": n}))

    failing.clear()
    failing.add("last")
    over = fan_out(
        last,
        over=lambda state: source(state["token"], lambda n: n),
        item="n",
        reads=["token"],
        into="outs",
        limits=Limits(2),
    )
    with pytest.raises(ExceptionGroup):
        await Application(over if kind == "elements" else Tasks()).run(secret())
    assert "was closed, it raised RuntimeError('closing ***')" in caplog.text


async def test_a_reason_for_which_others_are_cancelled_is_masked():
    @action(reads=["token"], writes=["out"])
    async def gives_up(token: str, context: Context) -> str:
        async with context.fan_out(name="own") as group:
            group.start(wins)
            await anyio.sleep(0.5)
            raise ValueError(token)

    hook = RecordingHook()
    with pytest.raises(ValueError, match=r"\*\*\*"):
        await Application(gives_up, hooks=[hook]).run(secret())
    (ended,) = hook.of(ChildEnded)
    assert isinstance(ended.outcome, Cancelled)
    assert ended.outcome.reason == "the action raised ValueError('***')"


# -- what would leave, and is refused --------------------------------------------------------------


@action(reads=["token"], writes=["out"])
async def returns(token: str) -> Any:
    return {"deep": [f"https://example.org/?key={token}"]}


@action(reads=["token"], writes=["out"])
async def yields(token: str) -> AsyncIterator[Any]:
    try:
        yield f"item {token}"
        yield Result("never")
    finally:
        raise RuntimeError(f"closing {token}")


@action(reads=["token", "out"], writes=["out"])
async def keys(token: str, state: State[Any]) -> State[Any]:
    return state.put("out", token, 1)


@action(reads=["token"], writes=["out"])
async def spans(token: str, context: Context) -> str:
    with context.span("part", token=token):
        return "never"


@action(reads=["token"], writes=["out"])
async def names_span(token: str, context: Context) -> str:
    with context.span(f"call {token}"):
        return "never"


@action(reads=["token"], writes=["out"])
async def emits(token: str, context: Context) -> str:
    await context.emit([token])
    return "never"


@action(reads=["token"], writes=["out"], limits=Limits(1, by=lambda state: state["token"]))
async def limited(token: str) -> str:
    return "never"


@action(reads=["token"], writes=["out"])
async def asks(token: str, context: Context) -> Any:
    return await context.ask("really", f"with {token}?")


@action(writes=["out"], cache=60)
async def knows(key: str) -> str:
    return key


@action(reads=["n"], writes=["out"])
async def harmless(n: Any) -> str:
    return "fine"


def one(_: object) -> int:
    return 1


def canary(_: object) -> str:
    return CANARY


def listed(state: State[Any]) -> Any:
    return [[state["token"]]]


def over_what(elements: Callable[[State[Any]], Any], **options: Any) -> Any:
    given: dict[str, Any] = {"into": "outs", "key": one, **options}
    return fan_out(harmless, over=elements, item="n", reads=["token"], **given)


def token_of(state: State[Any]) -> Any:
    return state["token"]


breaker = Each(breaker=Breaker(by=token_of, failures=1, cool_down=1))
LEAKING: dict[str, tuple[Any, str]] = {
    "a value": (returns, "step 'returns'.*contains the text of secret field 'token'"),
    "a value of a child": (fan_out([returns], into="outs"), "what 'returns' has come to"),
    "an item": (yields, "a partial item of action 'yields'"),
    "a question": (asks, "a question of run x, or an answer, contains"),
    "a remembered result": (knows.bind(key=CANARY), "what action 'knows' has come to"),
    "a key": (keys, "step 'keys'"),
    "an emitted item": (emits, "a partial item of action 'emits'"),
    "the name of a span": (names_span, "the name of a span of action 'names_span'"),
    "a span": (spans, "span 'part' of action 'spans'"),
    "a key of limits": (limited, r"the key that by= of .* returned"),
    "an element": (over_what(listed), "an element of 'outs', or its key"),
    "a child's key": (over_what(lambda state: [1], key=canary), "an element of 'outs', or its key"),
    "what take returns": (
        fan_out([Graph.chain(wins)], into="outs", take=token_of),
        "what 'wins' has come to",
    ),
    "what reduce writes": (
        fan_out(
            [wins],
            name="outs",
            reads=["token"],
            writes=["seen"],
            reduce=lambda state, _: state.append(seen=state["token"]),
        ),
        "step 'outs'",
    ),
    "a key of a breaker": (
        fan_out([Graph.chain(wins)], into="outs", each=breaker),
        r"the key that Breaker\(by=...\) returned",
    ),
}


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, ExceptionGroup):
        for inner in cast("ExceptionGroup[Exception]", error).exceptions:
            yield from leaves_of(inner)
    else:
        yield error


@pytest.mark.parametrize("leak", LEAKING)
async def test_what_holds_the_text_of_a_secret_is_refused_where_it_was_made(leak: str):
    act, says = LEAKING[leak]
    hook, store = RecordingHook(), MemoryStore()
    app = Application(act, store=store, hooks=[hook, tracing := Spans()])
    async with no_leaks():
        with pytest.raises((SecretLeaked, ExceptionGroup)) as caught:
            await app.run(secret(out={}), id="x")
    (leaf,) = leaves_of(caught.value)
    with pytest.raises(SecretLeaked, match=says):
        raise leaf
    texts = [str(leaf), *texts_of(hook.events), *kept_in(store, Path()), *tracing.seen]
    assert not [text for text in texts if traces_in(text)]


@pytest.mark.parametrize("leak", LEAKING)
async def test_a_secret_is_refused_whether_or_not_anything_listens(leak: str):
    act, says = LEAKING[leak]
    with pytest.raises((SecretLeaked, ExceptionGroup)) as caught:
        await Application(act, store=MemoryStore()).run(secret(out={}), id="x")
    (leaf,) = leaves_of(caught.value)
    with pytest.raises(SecretLeaked, match=says):
        raise leaf


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")


class Private(BaseModel):
    _kept: str = PrivateAttr("")


@dataclass
class Attributed:
    known: int = 1
    kept: str = field(init=False)


class Plain:
    def __init__(self, kept: Any) -> None:
        self.kept = kept


class Slotted:
    __slots__ = ("_kept", "unset")

    def __init__(self, kept: Any) -> None:
        self._kept = kept


def with_private(text: str) -> Private:
    model = Private()
    model._kept = text
    return model


def with_attribute(text: str) -> Attributed:
    made = Attributed()
    made.kept = text
    return made


CODEC = Codec()
CODEC.register(Plain, tag="plain", encode=lambda one: one.kept, decode=lambda data, _: Plain(data))
CODEC.register(
    Slotted, tag="slotted", encode=lambda one: one._kept, decode=lambda data, _: Slotted(data)
)
HOLDING: dict[str, Callable[[str], Any]] = {
    "a path": lambda text: Path("/keys") / text,
    "a path of Windows": PureWindowsPath,
    "extra fields": lambda text: Extra.model_validate({"more": {"deep": text}}),
    "the name of an extra field": lambda text: Extra.model_validate({text: 1}),
    "private attributes": with_private,
    "a field that is set later": with_attribute,
    "a registered object": Plain,
    "one with slots": Slotted,
    "one in a list": lambda text: [Slotted({"deep": (text,)})],
    "the file of an error": lambda text: OSError(2, "none", text),
}


@pytest.mark.parametrize("way", ["returns", "asks", "emits"])
@pytest.mark.parametrize("holder", HOLDING)
async def test_so_is_what_holds_it_as_what_it_is(holder: str, way: str, tmp_path: Path):
    """Whatever the codec writes in clear is refused before, and in no file."""

    @action(reads=["token"], writes=["out"])
    async def act(token: str, context: Context) -> Any:
        value = HOLDING[holder](token)
        if way == "asks":
            return await context.ask("really", value)
        if way == "emits":
            await context.emit(value)
            return 1
        return value

    hook = RecordingHook()
    async with SQLiteStore(tmp_path / "runs.db", codec=CODEC) as store:
        with pytest.raises(SecretLeaked):
            await Application(act, store=store, hooks=[hook]).run(secret(), id="x")
    assert not [text for text in texts_of(hook.events) if traces_in(text)]
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert CANARY.encode() not in kept


async def test_what_leads_to_everything_is_not_followed():
    """An object's attributes are looked at, but not what is behind them: a row, and its session."""

    @action(reads=["token"], writes=["out"])
    async def act(token: str, context: Context) -> str:
        await context.emit(Plain(Plain(token)))
        await context.emit(type("Kind", (), {"token": token}))
        return "fine"

    assert (await Application(act).run(secret())).state["out"] == "fine"


async def test_names_of_fields_and_what_a_client_has_are_no_secrets():
    @action(reads=["token"], writes=["out"])
    async def act(token: Any) -> list[str]:
        return ["user", "password", "https://example.org"]

    for held in (Account(user="me", password=SecretStr(CANARY)), Plain("https://example.org")):
        result = await Application(act).run(secret(held))
        assert len(result.state["out"]) == 3


async def test_so_is_another_field_of_the_first_state():
    for more in ({"url": f"https://{CANARY}@example.org"}, {"all": [{"x": CANARY.encode()}]}):
        with pytest.raises(
            SecretLeaked, match="of the initial state contains the text of secret field"
        ):
            await Application(wins, store=MemoryStore()).run(secret(**more))


async def test_short_texts_and_what_is_no_text_are_not_looked_for():
    @action(reads=["token"], writes=["out"])
    async def shows(token: Any) -> Any:
        return f"<{token}>"

    for short in ("", "no", "1234567", 12345678, None):
        result = await Application(shows).run(secret(short))
        assert result.state["out"] == f"<{short}>"
    with pytest.raises(SecretLeaked):
        await Application(shows).run(secret("12345678"))

    @action(reads=["token"], writes=["out"])
    async def returns_it(token: Any) -> Any:
        return token

    with pytest.raises(SecretLeaked):
        await Application(returns_it).run(secret("pass"))


# -- acts that would have it leave -----------------------------------------------------------------


@action(writes=["token"])
async def login() -> str:
    return "never"


@action(reads=["token"], writes=["out"], cache=60)
async def remembers(token: str) -> str:
    return "never"


EXPOSING: dict[str, tuple[Any, str]] = {
    "a cache": (remembers, "'remembers' has cache= and reads 'token'"),
    "writes": (login, "'login' writes 'token'"),
    "writes in a node": (Graph.chain(wins, Graph.chain(login)), "'login' writes 'token'"),
    "writes in a child": (fan_out([login, wins], into="outs"), "'login' writes 'token'"),
    "into": (fan_out([wins], into="token"), "'token' writes 'token'"),
    "over": (fan_out(harmless, over="token", item="n", into="outs"), "'outs' runs over 'token'"),
    "item": (fan_out(wins, over="ns", item="token", into="outs"), "its elements as 'token'"),
    "take": (fan_out([wins], into="outs", take="token"), "'outs' takes 'token'"),
    "takes it too": (fan_out([wins], into="o", take=["answer", "token"]), "'o' takes 'token'"),
}


@pytest.mark.parametrize("exposing", EXPOSING)
async def test_acts_that_would_expose_a_secret_are_refused_before_anything_runs(exposing: str):
    act, says = EXPOSING[exposing]
    if exposing not in ("writes", "writes in a node", "over", "item", "into"):
        act = Graph.chain(wins, act)
    store = MemoryStore()
    with pytest.raises(StateError, match=says):
        await Application(act, store=store).run(secret(ns=[1]), id="x")
    assert (len(store), store._claims) == (0, {})
    with pytest.raises(DefinitionError, match=says):
        Application(act, secret={"token"})


@pytest.mark.parametrize("how", ["chosen", "task", "started", "started with another"])
async def test_acts_that_are_known_only_later_are_refused_then(how: str):
    class Tasks(AskAll):
        def tasks(self, state: State[Any], inputs: Mapping[str, Any]) -> Any:
            yield Task(login)

    @action(reads=["token"], writes=["out"])
    async def starts(token: str, context: Context) -> str:
        async with context.fan_out(name="own") as group:
            if how == "started":
                group.start(login)
            else:
                group.start(harmless, {"n": 1})
                group.start(harmless, State({"n": 1, "out": CANARY}, secret={"out"}))
        return "never"

    chosen = fan_out(lambda _: [login], into="outs", reads=[], take="token")
    act = {"chosen": chosen, "task": Tasks()}.get(how, starts)
    with pytest.raises((StateError, ExceptionGroup)) as caught:
        await Application(Graph.chain(wins, act)).run(secret())
    (leaf,) = leaves_of(caught.value)
    assert "would expose a secret field" in str(leaf)


# -- on resume -------------------------------------------------------------------------------------


async def failed(app: Application[Any], state: Any, run_id: str = "x") -> None:
    failing.add("last")
    with pytest.raises(PermissionError):
        await app.run(state, id=run_id)
    failing.discard("last")


async def test_only_the_secret_or_all_of_the_state_is_given_again():
    for again in ({"token": OTHER}, secret(OTHER), secret(OTHER, n=1), {"token": OTHER, "n": 1}):
        app = Application(Graph.chain(harmless, last), store=MemoryStore())
        await failed(app, secret(n=1))
        result = await app.run(again, id="x")
        assert (result.state["done"], result.state["token"]) == ("done", OTHER)
        assert "<secret>" in repr(result.state)


async def test_a_secret_may_be_another_one_now_and_all_else_may_not():
    app = Application(Graph.chain(harmless, last), store=MemoryStore())
    await failed(app, secret(n=1))
    with pytest.raises(RunConflict, match="differs in 'n'") as caught:
        await app.run(secret(OTHER, n=2), id="x")
    with pytest.raises(RunConflict, match="differs in 'further'"):
        await app.run(State({"token": OTHER, "further": 1}, secret={"token", "further"}), id="x")
    with pytest.raises(RunConflict, match="differs in 'n'"):
        await app.run({}, id="x")
    with pytest.raises(MissingSecret):
        await app.run({"n": 1}, id="x")
    assert not traces_in(str(caught.value))
    assert (await app.run(secret(OTHER, n=1), id="x")).state["done"] == "done"


async def test_children_that_are_done_are_kept_though_the_secret_is_another_one():
    hook = RecordingHook()
    act = fan_out(fetch, over="ns", item="n", key=str, into="pages")
    app = Application(act, store=MemoryStore(), hooks=[hook])
    failing.clear()
    failing.add("map")
    with pytest.raises(ExceptionGroup):
        await app.run(secret(ns=[0, 1]), id="x")
    failing.clear()
    hook.events.clear()
    result = await app.run(secret(OTHER), id="x")
    assert result.state["pages"] == {"0": "page 0", "1": "page 1"}
    assert [event.child.key for event in hook.of(ChildStarted)] == ["1"]
    assert not hook.of(ChildRerun)


async def test_a_child_may_be_given_a_secret_of_its_own():
    class Tasks(AskAll):
        def tasks(self, state: State[Any], inputs: Mapping[str, Any]) -> Any:
            yield Task(wins, secret(), key=1)

    hook = RecordingHook()
    result = await Application(Tasks(), hooks=[hook]).run({"token": "none"})
    assert result.state["asked"] == {"wins": "won"}
    assert not [text for text in texts_of(hook.events) if traces_in(text)]
    assert [event.element for event in hook.of(ChildStarted)] == [{}]


async def test_what_was_saved_before_it_was_declared_secret_is_from_then_on():
    store, act = MemoryStore(), Graph.chain(harmless, last)
    await failed(Application(act, store=store), {"token": CANARY, "n": 1})
    hook = RecordingHook()
    app = Application(act, store=store, secret={"token"}, hooks=[hook])
    result = await app.run(id="x")
    assert "<secret>" in repr(result.state)
    assert result.state["token"] == CANARY


async def test_a_run_that_lacks_its_secret_is_left_as_it_is():
    app = Application(Graph.chain(harmless, last), store=(store := MemoryStore()))
    await failed(app, secret(n=1))
    before = repr(store._roots)
    for run in (lambda: app.run(id="x"), lambda: app.retry_failed("x"), lambda: app.fork("x")):
        with pytest.raises(MissingSecret, match="run x was started with 'token' as secret"):
            await run()
    async with Runtime() as runtime:
        with pytest.raises(MissingSecret):
            async with app.open(id="x", runtime=runtime):
                pytest.fail("it goes on")
    assert (repr(store._roots), store._claims) == (before, {})


async def test_a_fork_is_given_the_secrets_again_and_keeps_them_secret():
    app = Application(Graph.chain(harmless, last), store=(store := MemoryStore()))
    await app.run(secret(n=1), id="x")
    forked = await app.fork("x", number=0, update={"token": OTHER, "n": 2}, id="y")
    assert (forked.state["done"], forked.state["token"]) == ("done", OTHER)
    assert "<secret>" in repr(forked.state)
    assert not traces_in(repr(store._roots))
    again = await app.fork("y", update=State({"token": OTHER}, secret={"token"}))
    assert again.state["n"] == 2


async def test_only_secrets_are_given_to_retry_failed_and_recover():
    app = Application(Graph.chain(harmless, last), store=MemoryStore())
    await app.run(secret(n=1), id="x")
    with pytest.raises(
        BadUse, match=r"retry_failed\(state\) takes the secret fields.*'token'.*'n'"
    ):
        await app.retry_failed("x", {"token": OTHER, "n": 2})


# -- declared by an application --------------------------------------------------------------------


async def test_an_application_declares_it_once_for_all_runs():
    store = MemoryStore()
    app = Application(Graph.chain(harmless, last), store=store, secret={"token"})
    await failed(app, {"token": CANARY, "n": 1})
    assert not traces_in(repr(store._roots))
    result = await app.run({"token": OTHER}, id="x")  # it is known that the rest is left out
    assert (result.state["done"], "<secret>" in repr(result.state)) == ("done", True)
    with pytest.raises(MissingField, match="'n'"):
        await app.run({"token": OTHER}, id="y")
    async with app.open({"token": OTHER, "n": 1}) as run:
        await run.result()
        assert "<secret>" in repr(run.state)
    async with Runtime(store=store) as runtime:
        result = await runtime.run(app, {"token": OTHER, "n": 1})
        assert "<secret>" in repr(result.state)


def test_so_it_does_in_synchronous_code():
    failing.clear()
    result = Application(last, secret={"token"}).run_sync({"token": CANARY})
    assert "<secret>" in repr(result.state)


async def test_a_declaration_of_nothing_is_refused():
    with pytest.raises(DefinitionError, match=r"reads a field 'tokne'.*did you mean 'token'"):
        Application(last, secret={"tokne"})
    with pytest.raises(DefinitionError, match="secret"):
        Application(last, secret="token")


@dataclass
class Model:
    token: str
    n: int = 1
    done: str = ""
    page: str = ""


async def test_a_model_is_checked_and_made_with_it():
    app = Application(Graph.chain(fetch, last), state=Model, store=MemoryStore(), secret={"token"})
    failing.clear()
    await failed(app, Model(CANARY, n=4))
    result = await app.run({"token": OTHER}, id="x")
    assert result.state.data == Model(OTHER, 4, "done", "page 4")
    assert "<secret>" in repr(result.state)
    says = "secret field 'token' an int which does not fit"
    with pytest.raises(InvalidState, match=says) as caught:
        await app.run({"token": 70_707_070, "n": 4}, id="y")
    assert "70707070" not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"


class Defaulting(BaseModel):
    token: str = CANARY
    done: str = ""


async def test_a_default_of_a_model_is_as_secret():
    app = Application(last, state=Defaulting, store=(store := MemoryStore()), secret={"token"})
    failing.clear()
    result = await app.run(id="x")
    assert (result.state["token"], result.state["done"]) == (CANARY, "done")
    assert not traces_in(f"{result.state!r} {store._roots!r}")


class Account(BaseModel):
    user: str
    password: SecretStr


class Login(BaseModel):
    token: Account
    done: str = ""


async def test_what_a_model_hides_by_itself_is_looked_for_as_well():
    @action(reads=["token"], writes=["done"])
    async def opens(token: Account) -> str:
        raise ValueError(f"wrong: {token.password.get_secret_value()}")

    app = Application(opens, state=Login, secret={"token"})
    account = Account(user="me", password=SecretStr(CANARY))
    with pytest.raises(ValueError, match=r"wrong: \*\*\*"):
        await app.run(Login(token=account))


async def test_a_child_has_a_model_with_it():
    child = Graph.chain(last, name="child", state=Model)
    act = fan_out(child, over="ns", item="n", into="outs", take="done")
    failing.clear()
    result = await Application(act).run(secret(ns=[1, 2]))
    assert result.state["outs"] == ["done", "done"]


async def test_conditions_see_it_and_do_not_show_it():
    equal, true = when(token=CANARY), when(lambda token, n=1: token == CANARY)
    reads = when(lambda state: state["token"] == CANARY, reads=["token"])
    for condition in (equal & true & reads & when("token"),):
        act = Graph((harmless, last, condition))
        failing.clear()
        assert (await Application(act).run(secret(n=1))).state["done"] == "done"
    with pytest.raises(Exception, match="with n=1, token=<secret>"):
        await Application(Graph((harmless, last, true & ~true))).run(secret(n=1))


# -- recovering ------------------------------------------------------------------------------------


async def left_behind(app: Application[Any]) -> MemoryStore:
    """Return what is found after a process has died that ran two of them, one with a secret."""
    store = found = MemoryStore()
    async with Runtime(store=store) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: app.run(secret(), id="secret", runtime=runtime))
        tasks.start_soon(lambda: app.run({"token": "none"}, id="open", runtime=runtime))
        await anyio.sleep(0.5)
        found = store.copy()
        tasks.cancel_scope.cancel()
    return found


async def test_recover_looks_up_what_is_secret_and_leaves_alone_what_lacks_it():
    app = Application(wins)
    store = await left_behind(app)
    assert sorted(await store.orphans()) == [
        Orphan("open", "wins", "1", priority="normal"),
        Orphan("secret", "wins", "1", frozenset({"token"}), priority="normal"),
    ]
    async with no_leaks(), Runtime(apps=[app], store=store) as runtime:
        claimed: list[str] = []
        claim = store.claim
        store.claim = lambda run_id, holder: claimed.append(run_id) or claim(run_id, holder)  # pyright: ignore[reportAttributeAccessIssue] # watched
        found = {one.run_id: one for one in await runtime.recover()}
        assert isinstance(found["secret"].error, MissingSecret)
        assert (found["open"].error, claimed) == (None, ["open"])
        asked: list[Orphan] = []

        async def look_up(orphan: Orphan) -> Mapping[str, Any]:
            asked.append(orphan)
            await anyio.sleep(1)
            return {"token": OTHER, "more": 1}

        lacking: list[Any] = [lambda _: {}, lambda _: None, {"other": 1}, State()]  # pyright: ignore[reportUnknownLambdaType] # as users write them
        for secrets in lacking:
            (one,) = await runtime.recover(secrets=secrets)
            assert isinstance(one.error, MissingSecret)
        (one,) = await runtime.recover(secrets=lambda _: [1])  # pyright: ignore[reportArgumentType] # as users may
        assert "returned a list for run secret" in str(one.error)
        with pytest.raises(BadUse, match="takes a mapping or a function, not a str"):
            await runtime.recover(secrets="token")  # pyright: ignore[reportArgumentType] # as users may
        (one,) = await runtime.recover(secrets=look_up)
        assert (one.error, one.result.state["answer"]) == (None, "won")
        assert "<secret>" in repr(one)
        assert [orphan.secret for orphan in asked] == [{"token"}]


async def test_a_mapping_is_the_same_for_all():
    app = Application(wins)
    store = await left_behind(app)
    async with Runtime(apps=[app], store=store) as runtime:
        found = await runtime.recover(secrets={"token": OTHER})
    assert sorted((one.run_id, one.error) for one in found) == [("open", None), ("secret", None)]
