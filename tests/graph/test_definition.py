"""What is checked of an application when it is built, and what before the first action of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from shoal import END, Application, Graph, Runtime, State, action, fan_out, when
from shoal.errors import DefinitionError, MissingField, MissingInput

pytestmark = pytest.mark.anyio

STARTED: list[str] = []


@pytest.fixture(autouse=True)
def nothing_started() -> None:
    STARTED.clear()


@action(reads=["ready"], writes=["spied"])
async def spy(ready: bool) -> str:
    """The first of every graph here: if something is missing, it must not have started."""
    STARTED.append("spy")
    return "spied"


@action(reads=["page"], writes=["title"])
async def parse(page: str) -> str:
    return page


@action(writes=["page"])
async def fetch() -> str:
    return "page"


@action(reads=["item"], writes=["out"])
async def ask(item: object, client: object, retries: int = 3) -> object:
    return client


@action(writes=["other"])
async def other() -> str:
    return "other"


# -- fields --------------------------------------------------------------------------------------


def spread(act: Any, name: str, item: str = "item") -> Any:
    return fan_out(act, over="items", item=item, into=name, take=lambda _: None)


BRANCH = Graph((spy, fetch, when("spied")), (spy, other), (fetch, END), (other, END))
LOOP = Graph((spy, parse), (parse, fetch, when("again")), (parse, END), (fetch, parse))
LACKING: dict[str, tuple[Callable[[], Graph], str, str]] = {
    "an action": (lambda: Graph.chain(spy, parse), "page", "action 'parse' reads field 'page'"),
    "a branch": (
        lambda: Graph((spy, parse, when("spied")), (spy, other), (parse, END), (other, END)),
        "page",
        "action 'parse' reads field 'page'",
    ),
    "a loop's first turn": (lambda: LOOP, "page", "action 'parse' reads field 'page'"),
    "a condition": (
        lambda: Graph((spy, other, when("again")), (spy, END), (other, END)),
        "again",
        "edge 'spy' -> 'other', when('again'), reads field 'again'",
    ),
    "a node": (
        lambda: Graph.chain(spy, Graph.chain(other, parse, name="low")),
        "page",
        "action 'parse' reads field 'page'",
    ),
    "three deep": (
        lambda: Graph.chain(
            spy, Graph.chain(Graph.chain(Graph.chain(parse, name="a"), name="b"), name="c")
        ),
        "page",
        "action 'parse' reads field 'page'",
    ),
    "a fan-out's elements": (
        lambda: Graph.chain(spy, spread(other, "outs")),
        "items",
        "fan-out 'outs', which runs over it, reads field 'items'",
    ),
    "a fan-out's children": (
        lambda: Graph.chain(spy, spread(Graph.chain(other, parse, name="g"), "outs")),
        "page",
        (
            "action 'parse' in fan-out 'outs', whose element is 'item' (see item=; if 'page' is "
            "the element, write item='page'), reads field 'page'"
        ),
    ),
    "a fan-out of fan-outs": (
        lambda: Graph.chain(
            spy, fan_out(spread(parse, "low"), over="groups", item="items", into="high")
        ),
        "page",
        (
            "action 'parse' in fan-out 'low', whose element is 'item' (see item=; if 'page' is "
            "the element, write item='page'), in fan-out "
            "'high', whose element is 'items' (see item=), reads field 'page'"
        ),
    ),
}
GIVEN = {"ready": True, "page": "p", "again": False, "items": [1], "groups": [[1], [2]]}


@pytest.mark.parametrize("case", LACKING)
async def test_a_missing_field_is_found_before_the_first_action(case: str):
    make, field_, said = LACKING[case]
    given = {name: value for name, value in GIVEN.items() if name != field_}
    graph = make()
    with pytest.raises(DefinitionError) as refused:
        Application(graph, state=[*given], name="mine")
    application = Application(graph, name="mine")
    with pytest.raises(MissingField) as missed:
        await application.run(given)
    with pytest.raises(MissingField) as not_opened:
        application.open(given)
    async with Runtime() as runtime:
        with pytest.raises(MissingField):
            await runtime.run(application, given)
    messages = {str(refused.value), str(missed.value), str(not_opened.value)}
    (message,) = messages  # the same, whenever it is found
    assert message.startswith(f"application 'mine': {said}")
    assert "pass it to run(), or write it in an earlier action" in message
    assert not STARTED
    built = Application(graph, state=[*GIVEN])
    await built.run(GIVEN)
    assert STARTED == ["spy"]


async def test_what_is_written_on_every_way_needs_no_source():
    graph = Graph.chain(spy, fetch, Graph.chain(parse, name="low"))
    await Application(graph, state=["ready"]).run({"ready": True})
    assert STARTED == ["spy"]


async def test_what_only_some_way_writes_is_found_when_it_is_missed():
    graph = Graph((spy, fetch, when(lambda spied: spied == "never")), (spy, parse), (fetch, parse))
    with pytest.raises(MissingField, match="action 'parse' reads field 'page'"):
        await Application(graph, state=["ready"]).run({"ready": True})
    assert STARTED == ["spy"]  # only a run can tell


def test_fields_are_a_list_of_names():
    wrong: list[tuple[Any, str]] = [
        ("ready", "state='ready' is one string; give a list"),
        ([1], "lists field names, which are strings, not 1"),
        (5, "state= takes a model, which is a class, or a list of field names, not an int"),
        (int, "a pydantic model, a dataclass or a TypedDict, not the class int"),
    ]
    for state, said in wrong:
        with pytest.raises(DefinitionError, match=said):
            Application(spy, state=state)


# -- models --------------------------------------------------------------------------------------


@dataclass
class Model:
    ready: bool = True
    spied: str = ""
    page: str = ""
    items: list[int] = field(default_factory=list[int])
    outs: list[object] = field(default_factory=list[object])


@action(reads=["paje"], writes=["page"])
async def misread(state: State) -> State:
    return state


@action(reads=["page"], writes=["paje"])
async def miswrite(page: str) -> str:
    return page


MISFITS: dict[str, tuple[Callable[[], Any], str]] = {
    "read": (
        lambda: Graph.chain(spy, misread, name="g"),
        (
            "graph 'g': 'misread' does not fit: it reads field 'paje', which Model does not "
            "declare; did you mean 'page'?"
        ),
    ),
    "written": (
        lambda: Graph.chain(spy, miswrite, name="g"),
        (
            "graph 'g': 'miswrite' does not fit: it writes field 'paje', which Model does not "
            "declare; did you mean 'page'?"
        ),
    ),
    "unlike any": (
        lambda: Graph.chain(spy, other, name="g"),
        (
            "graph 'g': 'other' does not fit: it writes field 'other', which Model does not "
            "declare; declare it there"
        ),
    ),
    "a condition": (
        lambda: Graph((spy, END, when("reddy")), name="g"),
        (
            "graph 'g': edge 'spy' -> END, when('reddy') reads field 'reddy', which Model does not "
            "declare; did you mean 'ready'?"
        ),
    ),
    "a node": (
        lambda: Graph.chain(spy, Graph.chain(misread, name="low"), name="g"),
        "graph 'g': 'low' does not fit: it reads field 'paje', which Model does not declare",
    ),
    "a fan-out": (
        lambda: Graph.chain(
            spy, fan_out(miswrite, over="itens", item="page", into="outs"), name="g"
        ),
        (
            "graph 'g': 'outs' does not fit: it reads field 'itens', which Model does not "
            "declare; did you mean 'items'?"
        ),
    ),
}


@pytest.mark.parametrize("case", MISFITS)
@pytest.mark.parametrize("where", ["application", "graph", "chain", "part"])
def test_what_a_model_does_not_declare_is_refused_when_built(case: str, where: str):
    make, said = MISFITS[case]
    graph = make()
    with pytest.raises(DefinitionError) as caught:
        match where:
            case "application":
                Application(graph, state=Model)
            case "graph":
                Graph(*graph.edges, entry=graph.entry, name="g", state=Model)
            case "part":
                graph.part(name="g").typed(Model)
            case _:
                Application(graph.bind(name="g"), state=Model)
    assert str(caught.value).startswith(said)


# -- inputs --------------------------------------------------------------------------------------


WITH_INPUT: dict[str, Callable[[], Graph]] = {
    "an action": lambda: Graph.chain(spy, ask, name="g"),
    "a branch": lambda: Graph((spy, ask, when(lambda spied: not spied)), (spy, END), (ask, END)),
    "a node": lambda: Graph.chain(spy, Graph.chain(Graph.chain(ask, name="b"), name="c")),
    "a fan-out": lambda: Graph.chain(spy, fan_out(ask, over="items", into="outs")),
    "a fan-out of fan-outs": lambda: Graph.chain(
        spy,
        fan_out(fan_out(ask, over="items", into="low"), over="groups", item="items", into="high"),
    ),
    "several acts": lambda: Graph.chain(spy, fan_out([ask, other], over="items", into="outs")),
}
FIELDS = {"ready": True, "item": 1, "items": [1], "groups": [[1]]}


@pytest.mark.parametrize("case", WITH_INPUT)
async def test_a_missing_input_is_found_before_the_first_action(case: str):
    graph = WITH_INPUT[case]()
    with pytest.raises(DefinitionError) as refused:
        Application(graph, inputs=["retries"], name="mine")
    assert str(refused.value) == (
        "application 'mine': lacks the input 'client' (action 'ask'); "
        "name it in inputs=[...], or bind it"
    )
    for application in (
        Application(graph, name="mine"),
        Application(graph, name="mine", inputs=["client"]),
        Application(graph, name="mine", inputs={"retries": 1}),
    ):
        for start in (application.run, application.open):
            with pytest.raises(MissingInput) as missed:
                await started(start(FIELDS))
            assert str(missed.value).startswith(
                "application 'mine' lacks the input 'client' (action 'ask'); give it to "
            )
        async with Runtime(inputs={"retries": 1}) as runtime:
            with pytest.raises(MissingInput):
                await runtime.run(application, FIELDS)
    assert not STARTED
    for application, inputs in (
        (Application(graph, inputs={"client": 1}), {}),
        (Application(graph, inputs=["client"]), {"client": 1}),
        (Application(graph.bind(client=1), inputs=[]), {}),
    ):
        await application.run(FIELDS, inputs=inputs)


async def started(run: Any) -> None:
    if hasattr(run, "__await__"):
        await run


@pytest.mark.parametrize("case", WITH_INPUT)
async def test_an_input_that_nobody_takes_is_refused(case: str):
    graph = WITH_INPUT[case]()
    said = (
        r"no action takes an input 'cliend' \(they take: client, retries\); did you mean 'client'"
    )
    for inputs in (["client", "cliend"], {"cliend": 1}):
        with pytest.raises(DefinitionError, match=rf"^application 'mine': {said}"):
            Application(graph, name="mine", inputs=inputs)
    application = Application(graph, name="mine", inputs={"client": 1})
    for start in (application.run, application.open):
        with pytest.raises(DefinitionError, match=rf"\(inputs=...\): {said}"):
            await started(start(FIELDS, inputs={"cliend": 1}))
    assert not STARTED


async def test_acts_that_are_chosen_later_may_take_what_nobody_knows():
    act = fan_out(lambda _: ask, over="items", into="outs", take="out", reads=[])
    application = Application(act, inputs={"client": "c", "anything": 1})
    assert (await application.run({"items": [1]})).state["outs"] == ["c"]
    with pytest.raises(MissingInput, match=r"action 'ask' in step 'outs' of run .*'client'"):
        await Application(act).run({"items": [1]})


# -- settings ------------------------------------------------------------------------------------


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, r"Application\(name=...\) takes a name, not ''"),
    ({"name": 5}, r"Application\(name=...\) takes a name, not 5"),
    ({"limits": 5}, r"application 'spy': limits= takes Limits\(n\), not 5"),
    ({"hooks": 5}, "instances of shoal.Hook"),
    ({"hooks": [5]}, "instances of shoal.Hook"),
    ({"inputs": "client"}, "inputs='client' is one string"),
    *(
        ({name: wrong}, rf"application 'spy': {name}= takes a whole number of at least 1, not ")
        for name in ("max_steps", "max_depth", "max_live")
        for wrong in (0, -1, True, 2.0, "3", None)
    ),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_settings_that_can_not_be_are_refused(given: dict[str, Any], said: str):
    with pytest.raises(DefinitionError, match=said):
        Application(spy, **given)


def test_a_value_that_is_no_act_is_refused_with_advice():
    for wrong, said in ((len, "decorate it"), (5, "give an @action"), (END, "where an edge leads")):
        with pytest.raises(DefinitionError, match=said):
            Application(wrong)  # pyright: ignore[reportArgumentType]
