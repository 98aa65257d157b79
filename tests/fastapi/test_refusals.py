"""What clients send that can't be met: they are told so, with 422, and of nothing that was sent."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field, field_validator

from shoal import Application, Context, MemoryStore, PostgresStore, SQLiteStore, action, fan_out
from shoal.fastapi import runs_router
from shoal.testing import no_leaks
from tests.fastapi.inside import client_of, service_of, visitors
from tests.stores.postgres import PostgresServer, programs

pytestmark = pytest.mark.anyio

_schemas = count()

JSON = {"content-type": "application/json"}


class Thing(BaseModel):
    name: str = Field("", max_length=100)
    size: float = Field(1.0, ge=0)
    more: dict[str, Any] = {}
    said: str = ""


@action(reads=["name"], writes=["said"])
async def asks(name: str, context: Context) -> str:
    return await context.ask("q", {"name": name})


things = Application(asks, name="things", state=Thing)
loose = Application(asks, name="loose")


@pytest.fixture(scope="module")
def server() -> Generator[PostgresServer | None]:
    found = programs()
    if found is None:
        yield None
        return
    made = PostgresServer(found, {})
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def stored(kind: str, server: PostgresServer | None, folder: Path) -> Generator[Any]:
    if kind == "postgres" and server is None:
        pytest.skip("no PostgreSQL here")
    if kind == "postgres":
        assert server is not None
        yield PostgresStore(server.address(), schema=f"runs_{next(_schemas)}")
    else:
        yield {"memory": MemoryStore, "sqlite": lambda: SQLiteStore(folder / "runs.db")}[kind]()


NO_DATA = {
    "NaN": "NaN",
    "infinity": "-Infinity",
    "too large": "1e999",
    "half a pair": '"\\ud800"',
    "half a pair, raw": b'"\xed\xa0\x80"',
    "half a pair, as a name": '{"\\udc00": 1}',
    "far inside": '[[{"a": [1, 2, {"b": ["x", "\\udfff"]}]}]]',
}
PLACES = (
    ("/things", '{"id": "n", "state": {"name": %s}}'),
    ("/things/wait", '{"id": "n", "state": {"size": %s}}'),
    ("/things", '{"id": "n", "state": {"more": {"a": %s}}}'),
    ("/things", '{"id": "n", "state": {"unknown": %s}}'),
    ("/things", '{"id": %s, "state": {}}'),
    ("/things", '{"id": "n", "state": %s}'),
    ("/things", "%s"),
    ("/loose", '{"id": "n", "state": {"name": %s}}'),
    ("/loose/wait", '{"id": "n", "state": {"name": "x", "unknown": [%s]}}'),
    ("/things/asking/answers", '{"answers": [{"name": "q", "value": %s}]}'),
    ("/things/asking/answers", '{"answers": [{"name": %s, "value": 1}]}'),
    ("/things/asking/answers", '{"answers": [{"name": "q", "value": 1, "run_id": %s}]}'),
    ("/things/asking/cancel", '{"reason": %s}'),
    ("/things/asking/cancel", '{"unknown": %s}'),
)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
async def test_what_json_lacks_is_refused_whatever_the_store(
    kind: str, server: PostgresServer | None, tmp_path: Path
):
    with stored(kind, server, tmp_path) as store:
        service, runtime = service_of(things, loose, store=store)
        async with no_leaks(), client_of(service) as client:
            asking = await client.post("/things/wait", json={"id": "asking", "state": {}})
            assert asking.json()["status"] == "halted"
            for path, body in PLACES:
                for what, value in NO_DATA.items():
                    text = value if isinstance(value, bytes) else value.encode()
                    content = body.encode().replace(b"%s", text)
                    refused = await client.post(path, content=content, headers=JSON)
                    assert refused.status_code == 422, (path, what, refused.text)
                    json.loads(refused.text)
            assert (await client.get("/things/n")).status_code == 404
            assert (await client.get("/things/asking")).json()["status"] == "halted"
            assert runtime.runs() == []


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
async def test_what_is_odd_and_yet_data_is_kept_whatever_the_store(
    kind: str, server: PostgresServer | None, tmp_path: Path
):
    odd = [
        "a\u0000b",
        "\u2028 \ufffe \U0001f600",
        int("9" * 4000),
        -(1 << 70),
        1e308,
        {"\0": [None]},
    ]
    with stored(kind, server, tmp_path) as store:
        service, _ = service_of(things, loose, store=store)
        async with no_leaks(), client_of(service) as client:
            body = {"id": "odd", "state": {"name": "x", "odd": odd}}
            done = await client.post("/loose/wait", json=body)
            assert (done.status_code, done.json()["status"]) == (200, "halted")
            answers = [{"name": "q", "value": odd}]
            done = await client.post("/loose/odd/answers", json={"answers": answers})
            assert done.status_code == 202
            done = await client.post("/loose/wait", json=body)
            assert (done.json()["status"], done.json()["state"]["said"]) == ("succeeded", odd)
            again = await client.post("/loose", json=body)
            assert (again.status_code, again.json()["status"]) == (202, "succeeded")


NO_JSON: tuple[tuple[bytes, dict[str, str]], ...] = (
    (b"\xff\xfe\x00", JSON),
    (b'{"id": "a', JSON),
    (b"\xff", {"content-type": "text/plain"}),
    (b'{"state": {}}', {}),
    (b'{"state": {"name": ' + b"9" * 5000 + b"}}", JSON),
    (b"", JSON),
)


async def test_what_is_no_json_is_refused():
    service, _ = service_of(things)
    async with no_leaks(), client_of(service) as client:
        for content, headers in NO_JSON:
            refused = await client.post("/things", content=content, headers=headers)
            assert refused.status_code == 422, (content, refused.text)
            assert b"9999" not in refused.content


odd_texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=5)
odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["id", "state", "name", "size", "more", "answers", "value", "reason"])
bodies = odd_values | st.dictionaries(
    keys | odd_texts, st.dictionaries(keys, odd_values, max_size=3) | odd_values, max_size=3
)
PATHS = ("/things", "/things/wait", "/loose", "/things/a/answers", "/things/a/cancel")


@pytest.mark.sweep
@given(st.lists(st.tuples(st.sampled_from(PATHS), bodies), min_size=30, max_size=60))
@settings(derandomize=True, deadline=None, max_examples=8)
def test_no_body_makes_the_service_fail(asked: list[tuple[str, Any]]):
    async def ask() -> None:
        service, _ = service_of(things, loose)
        async with client_of(service) as client:
            for path, body in asked:
                raw = json.dumps(body, ensure_ascii=False).encode(errors="replace")
                for content in (json.dumps(body).encode(), raw):
                    answered = await client.post(path, content=content, headers=JSON)
                    assert answered.status_code < 500, (path, body, answered.text)
                    json.loads(answered.text)

    anyio.run(ask)


# -- secrets ---------------------------------------------------------------------------------------

SECRET = "s3cr3t-of-somebody"


def not_of(value: str) -> str:
    if "wrong" in value:
        raise ValueError(f"bad token {value!r}")
    return value


class Nested(BaseModel):
    key: Annotated[str, AfterValidator(not_of)] = ""
    numbers: dict[str, int] = {}


class Keeping(BaseModel):
    token: Annotated[str, Field(max_length=60), AfterValidator(not_of)]
    nested: Nested = Nested()
    n: int = 0
    said: str = ""

    @field_validator("token")
    @classmethod
    def _checked(cls, value: str) -> str:
        if "odd" in value:
            raise ValueError(f"odd token {value!r}")
        return value


@action(reads=["token", "nested", "n"], writes=["said"])
async def use(token: str, nested: Nested, n: int) -> str:
    return f"{len(token)} {n}"


keeping = Application(use, name="keeping", state=Keeping, secret={"token", "nested"})
keeping_loosely = Application(use, name="loosely", secret={"token", "nested"})

WITH_SECRETS: tuple[Any, ...] = (
    {"state": {"token": SECRET}, "id": "a/b"},
    {"state": {"token": SECRET, "n": "no number"}},
    {"state": {"token": SECRET, "unknown": 1}},
    {"state": {"token": [SECRET]}},
    {"state": {"token": {SECRET: SECRET}}},
    {"state": {"token": f"{SECRET}, wrong"}},
    {"state": {"token": f"{SECRET}, odd"}},  # methods of models are not called
    {"state": {"token": SECRET * 9}},
    {"state": {"token": "t", "nested": SECRET}},
    {"state": {"token": "t", "nested": {"key": f"{SECRET}, wrong"}}},
    {"state": {"token": "t", "nested": {"numbers": {SECRET: SECRET}}}},
    {"state": {"tokn": SECRET}},
    {"state": [SECRET]},
    {"state": SECRET},
    {"token": SECRET},
    [SECRET],
    {"id": SECRET + "/", "state": {"token": SECRET}},
)


@pytest.mark.parametrize("app", [keeping, keeping_loosely], ids=["model", "none"])
async def test_a_secret_is_in_no_refusal(app: Any, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    service, _ = service_of(app)
    seen = list[str]()

    async def tell(_: Request, error: Exception) -> JSONResponse:  # as a service's own might
        assert isinstance(error, RequestValidationError)
        seen.append(repr(error.body) + repr(error.errors()) + str(error))
        seen.append(repr(error.__cause__) + repr(error.__context__))
        return JSONResponse({"detail": error.errors()}, 422)

    own, _ = service_of(app)
    own.add_exception_handler(RequestValidationError, tell)
    async with no_leaks():
        for each in (service, own):
            async with client_of(each) as client:
                for path in (f"/{app.name}", f"/{app.name}/wait"):
                    for body in WITH_SECRETS:
                        refused = await client.post(path, json=body)
                        assert refused.status_code in (200, 202, 422), (body, refused.text)
                        assert SECRET not in refused.text + repr(refused.headers), body
                broken = f'{{"state": {{"token": "{SECRET}" oops'
                refused = await client.post(path, content=broken, headers=JSON)
                assert (refused.status_code, SECRET in refused.text) == (422, False)
    assert seen
    assert SECRET not in "".join(seen)
    assert SECRET not in caplog.text


async def test_a_refusal_says_what_and_where():
    service, _ = service_of(keeping)
    async with client_of(service) as client:
        body = {"state": {"token": f"{SECRET}, wrong", "n": "x"}, "unknown": SECRET}
        (first, second, third) = (await client.post("/keeping", json=body)).json()["detail"]
    assert first == {
        "type": "value_error",
        "loc": ["body", "state", "token"],
        "msg": "is not valid for the secret field",
    }
    assert (second["loc"], second["type"]) == (["body", "state", "n"], "int_parsing")
    assert (third["loc"], third["type"]) == (["body", "unknown"], "extra_forbidden")


async def test_what_headers_hold_is_in_no_refusal():
    async def authorize(
        x_token: Annotated[str, Header(max_length=5)], x_n: Annotated[int, Header()] = 0
    ) -> None:
        """Never reached: the header is too long."""

    service, _ = service_of(things, authorize=authorize)
    async with client_of(service) as client:
        for headers in ({"x-token": SECRET}, {"x-token": "t", "x-n": SECRET}):
            for method, path in (("POST", "/things"), ("GET", "/things"), ("GET", "/things/a")):
                refused = await client.request(method, path, json={}, headers=headers)
                assert (refused.status_code, SECRET in refused.text) == (422, False), path


async def test_authorize_receives_only_what_can_be_an_id():
    received = list[str]()

    async def authorize(run_id: str = "") -> None:
        received.append(run_id)
        raise HTTPException(403, f"not yours: {run_id}", {"X-Run": run_id})

    service, _ = service_of(things, authorize=authorize)
    async with client_of(service) as client:
        for value in ("\\ud800", "a\\r\\nX-Evil: 1", "a\\u0000", "€", "x" * 201):
            body = f'{{"id": "{value}", "state": {{}}}}'
            refused = await client.post("/things", content=body, headers=JSON)
            assert refused.status_code == 403
        for path in ("a%00", "a%0d%0aX-Evil:%201", "%E2%82%AC"):
            assert (await client.get(f"/things/{path}")).status_code == 403
        assert set(received) == {""}
        assert (await client.get("/things/a~b")).status_code == 403
        assert received[-1] == "a~b"


BESIDES: tuple[Any, ...] = (
    ({"state": {"token": SECRET, "n": 1, "url": f"https://h/?t={SECRET}"}}, ["state", "url"]),
    ({"state": {"token": SECRET, "n": 1, "url": [{"a": SECRET}]}}, ["state", "url"]),
    ({"id": SECRET, "state": {"token": SECRET, "n": 1}}, ["id"]),
    ({"id": f"run-of-{SECRET}", "state": {"token": SECRET, "n": 1}}, ["id"]),
)


@pytest.mark.parametrize("path", ["/spread", "/spread/wait"])
async def test_the_text_of_a_secret_elsewhere_is_refused_where_it_is(
    path: str, caplog: pytest.LogCaptureFixture
):
    @action(reads=["token", "n", "url"], writes=["said"])
    async def spread(token: str, n: int, url: Any = None) -> str:
        raise NotImplementedError

    store = MemoryStore()
    service, runtime = service_of(Application(spread, name="spread", secret={"token"}), store=store)
    async with no_leaks(), client_of(service) as client:
        for body, where in BESIDES:
            refused = await client.post(path, json=body)
            assert refused.status_code == 422
            assert refused.json()["detail"] == [
                {
                    "type": "secret_leaked",
                    "loc": ["body", *where],
                    "msg": "has the text of a secret field, and would be saved",
                }
            ]
            assert SECRET not in refused.text + repr(refused.headers) + caplog.text
        assert runtime.runs() == []
        assert await store.runs() == []


# -- the form of refusals --------------------------------------------------------------------------

UNREADABLE = {
    "no JSON": ('{"id": "a', "json_invalid"),
    "no UTF-8": (b'{"id": "\xff"}', "json_invalid"),
    "too deep to be parsed": ("[" * 100_000, "too_deep"),
    "too deep": ("[" * 200 + "]" * 200, "too_deep"),
    "too many digits": ('{"state": {"name": ' + "9" * 4_301 + "}}", "int_parsing_size"),
    "NaN": ('{"state": {"size": NaN}}', "finite_number"),
    "infinity": ('{"state": {"size": 1e999}}', "finite_number"),
    "half a pair": ('{"state": {"name": "\\ud800"}}', "string_unicode"),
    "a wrong type": ('{"state": {"size": "x"}}', "float_parsing"),
    "a wrong body": ('"x"', "model_attributes_type"),
    "an unknown field": ('{"state": {}, "more": 1}', "extra_forbidden"),
    "a wrong id": ('{"id": "a/b", "state": {}}', "string_pattern_mismatch"),
    "no body": ("", "missing"),
}


def check_form(detail: Any) -> None:
    for one in detail:
        assert one.keys() == {"type", "loc", "msg"}, one
        assert isinstance(one["loc"], list)
        assert one["loc"][0] in ("body", "path", "query")
        for advice in ("run(", "fork(", "State(", "recover(", "id=", "answers=", "Application("):
            assert advice not in one["msg"], one


@pytest.mark.parametrize("path", ["/things", "/things/wait"])
async def test_each_refusal_has_the_form_of_fastapi(path: str):
    service, _ = service_of(things)
    async with no_leaks(), client_of(service) as client:
        for what, (content, kind) in UNREADABLE.items():
            refused = await client.post(path, content=content, headers=JSON)
            assert refused.status_code == 422, (what, refused.text)
            check_form(refused.json()["detail"])
            assert [one["type"] for one in refused.json()["detail"]] == [kind], what


async def test_a_client_that_may_not_ask_is_refused_whatever_it_sends():
    async def authorize() -> None:
        raise HTTPException(401, "no token")

    service, _ = service_of(things, authorize=authorize)
    async with no_leaks(), client_of(service) as client:
        for path in ("/things", "/things/wait", "/things/a/answers", "/things/a/cancel"):
            for what, (content, _) in UNREADABLE.items():
                refused = await client.post(path, content=content, headers=JSON)
                assert refused.status_code == 401, (path, what)
                assert refused.json() == {"detail": "no token"}, (path, what)


async def test_a_refusal_of_an_answer_says_which_and_why():
    service, _ = service_of(visitors)
    async with no_leaks(), client_of(service) as client:
        halted = await client.post("/visitors/wait", json={"id": "v", "state": {"items": [1, 2]}})
        first, second = halted.json()["questions"]
        good = {"name": "name", "value": "a", "run_id": first["run_id"]}
        for wrong, why in (
            ({"name": "nobody", "value": "b"}, "is none of the open questions of the run"),
            (
                {"name": "name", "value": "b"},
                "2 questions have this name: give the run_id of the one that is meant",
            ),
            (
                {"name": "nme", "value": "b", "run_id": second["run_id"]},
                "is none of the open questions of the run",
            ),
        ):
            body = {"answers": [good, wrong]}
            refused = await client.post("/visitors/v/answers", json=body)
            assert refused.status_code == 422, refused.text
            assert refused.json()["detail"] == [
                {"type": "unknown_question", "loc": ["body", "answers", 1], "msg": why}
            ]


async def test_what_a_run_lacks_is_a_refusal_of_the_same_form():
    service, _ = service_of(loose, keeping_loosely)
    async with no_leaks(), client_of(service) as client:
        lacking: tuple[tuple[str, dict[str, Any], str], ...] = (
            ("/loose", {"state": {}}, "name"),
            ("/loose/wait", {"id": "a"}, "name"),
            ("/loosely", {"state": {"token": SECRET, "nested": 1}}, "n"),
            ("/loosely", {"state": {"n": 1, "nested": 1}}, "token"),
        )
        for path, body, field in lacking:
            refused = await client.post(path, json=body)
            assert refused.status_code == 422, refused.text
            (detail,) = refused.json()["detail"]
            check_form([detail])
            assert (detail["type"], detail["loc"][:3]) == ("missing", ["body", "state", field])


async def test_a_conflict_has_advice_for_clients_alone():
    service, _ = service_of(things)
    async with no_leaks(), client_of(service) as client:
        await client.post("/things/wait", json={"id": "a", "state": {"name": "x"}})
        refused = await client.post("/things", json={"id": "a", "state": {"name": "y"}})
        assert refused.status_code == 409
        assert refused.json()["detail"] == (
            "run a exists, and was started with something else: its initial state differs in "
            "'name'; send its id without `state` to resume it, or another `id` for a new run"
        )


async def test_a_conflict_with_a_changed_program_advises_no_request_that_fails_as_well(
    caplog: pytest.LogCaptureFixture,
):
    store = MemoryStore()

    def program(step: str) -> Application[Any]:
        each = fan_out(asks, over="names", item="name", key=str, into=step)
        return Application(each, name="things")

    service, _ = service_of(program("first"), store=store)
    async with client_of(service) as client:
        await client.post("/things/wait", json={"id": "a", "state": {"names": ["x"]}})
    service, _ = service_of(program("second"), store=store)
    async with no_leaks(), client_of(service) as client:
        refused = await client.post("/things", json={"id": "a"})
        assert refused.status_code == 409
        assert refused.json()["detail"] == (
            "the run was begun by a program that differs from this one, and can't go on here; "
            "send another `id` for a new run"
        )
    assert "in the middle of step 'first'" in caplog.text


# -- where a run is --------------------------------------------------------------------------------


TENANTS = ("acme", "a%20b", "%C3%BC", "%E2%82%AC", "a%3Fb", "a%23b", "a%25b", "a%0D%0Ab", "%ED")


async def test_whatever_its_prefix_a_run_has_an_address():
    service, _ = service_of()
    service.include_router(runs_router(things, authorize=None, prefix="/of/{tenant}/runs"))
    async with no_leaks(), client_of(service) as client:
        for n, tenant in enumerate(TENANTS):
            body = {"id": f"a{n}", "state": {"name": "x"}}
            started = await client.post(f"/of/{tenant}/runs", json=body)
            assert started.status_code == 202
            where = started.headers["location"]
            assert where.startswith("/of/")
            assert where.isascii()
            assert (await client.get(where)).json()["id"] == f"a{n}"
            if tenant != "%ED":  # no UTF-8, which the server replaces
                assert where == f"/of/{tenant}/runs/a{n}"


@pytest.mark.parametrize("path", ["/{rest:path}/runs"])
async def test_an_address_never_names_another_host(path: str):
    service = FastAPI(lifespan=service_of(things)[0].router.lifespan_context)
    service.include_router(runs_router(things, authorize=None, prefix=path))
    async with client_of(service) as client:
        started = await client.post("http://x//evil.example/runs", json={"state": {}})
        assert started.status_code == 202
        assert started.headers["location"].startswith("/%2Fevil.example/runs/")


# -- how the service is ----------------------------------------------------------------------------


async def test_only_clients_that_may_ask_see_errors_of_the_database(
    caplog: pytest.LogCaptureFixture,
):
    async def allowed(request: Request) -> None:
        if request.headers.get("authorization") != "t":
            raise HTTPException(401)

    for authorize in (None, allowed):
        store = MemoryStore()
        service, _ = service_of(things, store=store, authorize=authorize)

        async def gone(run_id: str) -> None:
            raise OSError("no route to postgresql://db.internal/runs")

        store.load = gone
        caplog.clear()
        async with client_of(service, headers={"authorization": "t"}) as client:
            for _ in range(3):
                refused = await client.get("/readyz")
                assert (refused.status_code, refused.json()["status"]) == (503, "unhealthy")
                is_told = "db.internal" in refused.text
                assert is_told == (authorize is not None)
        assert [one.message.count("db.internal") for one in caplog.records] == [1]
