"""Actions as classes: what they are given, what is refused, and what is bound to them."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import Action, Application, Context, Graph, Limits, Runtime, State, action, fan_out
from shoal.errors import BadResult, DefinitionError, MissingInput, UndeclaredWrite
from shoal.testing import no_leaks

pytestmark = pytest.mark.anyio


class Greet(Action):
    reads = ("name",)
    writes = ("greeting",)

    def __init__(self, word: str) -> None:
        self.word = word

    async def run(self, name: str, mark: str = "") -> str:
        await checkpoint()
        return f"{self.word}, {name}{mark}"


async def greeting(act: Any, **inputs: Any) -> str:
    async with no_leaks():
        return (await Application(act).run({"name": "shoal"}, inputs=inputs)).state["greeting"]


# -- what it is ------------------------------------------------------------------------------------


async def test_an_instance_is_an_act_with_settings_of_its_own():
    hello, moin = Greet("hello"), Greet("moin").bind(name="moin")
    assert (hello.name, moin.name) == ("Greet", "moin")
    assert (hello.reads, hello.writes) == ({"name"}, {"greeting"})
    assert (await greeting(hello), await greeting(moin)) == ("hello, shoal", "moin, shoal")
    assert await greeting(Graph.chain(hello, moin)) == "moin, shoal"
    assert await hello.run("you") == "hello, you"
    assert repr(moin) == "<action moin reads=['name'] writes=['greeting']>"
    both = fan_out([hello, moin], into="out")
    state = (await Application(both).run({"name": "x"})).state
    assert state["out"] == {"Greet": "hello, x", "moin": "moin, x"}


@pytest.mark.realtime
@pytest.mark.parametrize("where", ["threads", "loop"])
async def test_a_plain_run_is_called_in_a_thread_or_on_the_loop(where: Literal["threads", "loop"]):
    class Plain(Action):
        executor = where
        writes = ("greeting",)

        def run(self) -> str:
            return threading.current_thread().name

    here = threading.current_thread().name
    assert ((await greeting(Plain())) == here) == (where == "loop")


async def test_run_may_take_the_state_and_the_context():
    class Whole(Action):
        reads = ("name",)
        writes = ("greeting", "n")

        async def run(self, state: State, context: Context, tool: str) -> State:
            assert context.path.act == "Whole"
            assert dict(state) == {"name": "shoal"}
            return state.update(greeting=tool).increment(n=1)

    assert await greeting(Whole(), tool="hammer") == "hammer"
    with pytest.raises(MissingInput, match="'tool'"):
        await greeting(Whole())


async def test_several_writes_and_wrong_results_are_as_for_functions():
    class Two(Action):
        writes = ("greeting", "more")

        def __init__(self, result: Any) -> None:
            self.result = result

        async def run(self) -> Any:
            return self.result

    assert await greeting(Two({"greeting": "hi", "more": 1})) == "hi"
    with pytest.raises(BadResult, match="action 'Two' returned no value for more"):
        await greeting(Two({"greeting": "hi"}))
    with pytest.raises(UndeclaredWrite, match="action 'Two' returned a value for other"):
        await greeting(Two({"greeting": "hi", "more": 1, "other": 2}))


async def test_concurrent_runs_share_the_instance_and_nothing_else():
    class Slow(Greet):
        async def run(self, name: str, mark: str = "") -> str:
            await anyio.sleep(int(mark))
            return f"{self.word} {name} {mark}"

    slow, found = Slow("hi"), dict[int, str]()

    async def one(n: int) -> None:
        app = Application(slow)
        found[n] = (await app.run({"name": f"n{n}"}, inputs={"mark": str(n)})).state["greeting"]

    async with anyio.create_task_group() as tasks:
        for n in (3, 1, 2):
            tasks.start_soon(one, n)
    assert found == {n: f"hi n{n} {n}" for n in (1, 2, 3)}


async def test_limits_are_those_of_the_class_whatever_is_bound():
    running = peak = 0

    class Limited(Action):
        limits = Limits(2)
        reads = ("item",)
        writes = ("out",)

        def __init__(self, n: int) -> None:
            self.n = n

        async def run(self, item: int, tool: int = 0) -> int:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await anyio.sleep(1)
            running -= 1
            return item

    acts = [Limited(1), Limited(2).bind(name="two"), Limited(3).bind(name="three", tool=1)]
    app = Application(fan_out(acts, over="n", into="out"))
    await app.run({"n": range(4)})
    assert peak == 2


# -- subclasses ------------------------------------------------------------------------------------


async def test_a_subclass_of_a_subclass_has_its_own_name_and_what_it_inherits():
    class Loud(Greet):
        async def run(self, name: str, mark: str = "!") -> str:
            return (await super().run(name, mark)).upper()

    class Louder(Loud):
        name = "loudest"
        version = "2"

    assert (Loud.name, Louder.name, Greet.name) == ("Loud", "loudest", "Greet")
    assert (Louder("a").reads, Greet.version, Louder.version) == ({"name"}, "1", "2")
    assert await greeting(Loud("hello")) == "HELLO, SHOAL!"
    assert await greeting(Louder("hello").bind(mark="?")) == "HELLO, SHOAL?"


async def test_run_may_be_left_to_subclasses():
    class Base(Action):
        reads = ("name",)
        writes = ("greeting",)

        @abstractmethod
        def word(self) -> str: ...

    class Half(Base):
        async def run(self, name: str) -> str:
            return f"{self.word()} {name}"

    class Whole(Half):
        def word(self) -> str:
            return "whole"

    assert await greeting(Whole()) == "whole shoal"
    for unfinished in (Action, Base, Half):
        with pytest.raises(TypeError, match="abstract"):
            cast("Any", unfinished)()


async def test_a_mixin_may_bring_the_fields():
    class Fields(Action):
        reads = ("name",)
        writes = ("greeting",)

    class Base(Action):
        pass

    class Mixed(Base, Fields):
        async def run(self, name: str) -> str:
            return name

    assert await greeting(Mixed()) == "shoal"


@dataclass(frozen=True)
class Frozen(Greet):
    word: str


@dataclass(frozen=True, slots=True)
class FrozenWithSlots(Greet):
    word: str
    name: str = "slots"


@dataclass
class Named(Action):
    """Has no name as a class: each instance is given one."""

    name: str
    word: str
    reads = ("name",)
    writes = ("greeting",)

    async def run(self, state: State, mark: str = "") -> State:
        return state.update(greeting=f"{self.word}, {state['name']}{mark}")


@pytest.mark.parametrize(
    ("act", "name"),
    [(Greet("hi"), "Greet"), (Frozen("hi"), "Frozen"), (FrozenWithSlots("hi"), "slots"),
     (Named("own", "hi"), "own")],
)  # fmt: skip
async def test_every_kind_of_class_can_be_bound_again_and_again(act: Any, name: str):
    assert act.name == name
    assert await greeting(act) == "hi, shoal"
    bound = act.bind(mark="!").bind(name="other")
    assert (bound.name, bound.word, act.name, type(bound)) == ("other", "hi", name, type(act))
    assert await greeting(bound) == "hi, shoal!"
    with pytest.raises(DefinitionError, match="has it bound"):
        await greeting(bound, mark="-")
    with pytest.raises(DefinitionError, match="'other' has bound its input 'mark' already"):
        bound.bind(mark="?")
    assert await greeting(act) == "hi, shoal"
    with pytest.raises(
        DefinitionError, match=rf"'{name}' takes no input 'marc'.*did you mean 'mark'"
    ):
        act.bind(marc="!")
    for wrong in ("", 5):
        with pytest.raises(DefinitionError, match=r"bind\(name=...\) takes a name"):
            act.bind(name=cast("Any", wrong))


# -- bind ------------------------------------------------------------------------------------------


@action(reads=["name"], writes=["greeting"])
async def greet(name: str, mark: str = "default") -> str:
    return mark


class Mark(Action):
    reads = ("name",)
    writes = ("greeting",)

    async def run(self, name: str, mark: str = "default") -> str:
        return mark


FORMS: dict[str, Any] = {
    "function": greet,
    "class": Mark(),
    "graph": Graph.chain(greet, name="graph"),
    "graph of a class": Graph.chain(Mark(), name="graph"),
}


@pytest.mark.parametrize("form", FORMS)
async def test_bind_run_application_runtime_and_default_count_in_this_order(form: str):
    act = FORMS[form]
    assert await greeting(act) == "default"
    async with Runtime(inputs={"mark": "runtime"}) as runtime:
        for inputs, given, expected in (
            ({}, {}, "runtime"),
            ({"mark": "app"}, {}, "app"),
            ({"mark": "app"}, {"mark": "run"}, "run"),
        ):
            app = Application(act, inputs=inputs)
            result = await app.run({"name": "x"}, inputs=given, runtime=runtime)
            assert result.state["greeting"] == expected
        bound = Application(act.bind(mark="bound"))
        result = await bound.run({"name": "x"}, runtime=runtime)
        assert result.state["greeting"] == "bound"
    assert await greeting(act) == "default"


# -- what is refused where it is defined -----------------------------------------------------------


async def generates(self: object) -> AsyncIterator[int]:
    yield 1


def yields(self: object) -> Iterator[int]:
    yield 1


def variadic(self: object, *more: object) -> None: ...


def writes_parameter(self: object, out: int) -> None: ...


def twice(self: object, state: State) -> None: ...


def plain(self: object) -> None: ...


REFUSED: list[tuple[Mapping[str, Any], str]] = [
    ({"reads": "name"}, "class Wrong: reads='name' is one string"),
    ({"writes": [5]}, "class Wrong: writes= lists field names, which are strings, not 5"),
    ({"name": 5}, "class Wrong: name is a string, not 5"),
    ({"version": 2}, "class Wrong: version is a string, not 2"),
    ({"executor": "process"}, "action 'Wrong': executor= is 'loop', .* not 'process'"),
    ({"limits": 5}, r"action 'Wrong': limits= takes Limits\(n\), not 5"),
    ({"run": yields}, "action 'Wrong' is a generator function"),
    ({"run": variadic}, r"action 'Wrong': parameter \*more.* can't be bound by name"),
    ({"run": writes_parameter, "writes": ["out"]}, "parameter 'out' is a field that it writes"),
    ({"run": twice, "reads": ["state"]}, "parameter 'state' is both a field in reads="),
]


@pytest.mark.parametrize(("attributes", "message"), REFUSED)
def test_a_class_that_cannot_work_is_refused_where_it_is_defined(
    attributes: Mapping[str, Any], message: str
):
    with pytest.raises(DefinitionError, match=message):
        type("Wrong", (Action,), {"run": plain, **attributes})


def test_limits_belong_to_the_class():
    class Mine(Action):
        writes = ("out",)

        def __init__(self) -> None:
            self.limits = Limits(1)

        async def run(self) -> int:
            return 1

    with pytest.raises(DefinitionError, match=r"'Mine' has limits of its own; .* of the class"):
        Graph.chain(Mine())


def test_an_instance_may_read_and_write_other_fields_than_its_class():
    class Copy(Action):
        def __init__(self, source: str, target: str) -> None:
            self.reads = [source]
            self.writes = [target]

        async def run(self, state: State) -> State:
            (source,), (target,) = self.reads, self.writes
            return state.update({target: state[source]})

    copies = Graph.chain(Copy("a", "b"), Copy("b", "c").bind(name="again"))
    assert Application(copies).run_sync({"a": 1}).state == {"a": 1, "b": 1, "c": 1}
