"""A program as an application of shoal."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import anyio

from shoal import (
    END,
    Application,
    Breaker,
    Context,
    Done,
    Each,
    Failed,
    Graph,
    Hedge,
    Hook,
    Limits,
    Outcome,
    ParallelAction,
    Rate,
    Result,
    Retry,
    RetryLater,
    State,
    Task,
    Tolerate,
    action,
    fan_out,
    first,
    first_item,
    quorum,
    when,
)
from shoal.stores import Store
from shoal.types import Act
from tests.executors.fake import Fake

from .bodies import with_parameters
from .hooks import Clumsy, witness
from .world import SLOW, World

MOST_GROWN = 10
LONG = 20.0  # seconds: timeouts that only what is slow runs into


def text_of(item: object) -> str:
    """Give the text of an element, which may be in a mapping."""
    return str(cast("Mapping[str, str]", item)["name"] if isinstance(item, Mapping) else item)


def number_of(item: object) -> int:
    """Give the number of an element: 1 to its width; what grows from n is 10 n + 1, 10 n + 2."""
    text = text_of(item)
    return int(text.rpartition(".")[2]) if "." in text else 1


def grown_from(number: int) -> list[int]:
    return [10 * number + 1, 10 * number + 2] if number % 2 and number < MOST_GROWN else []


class Builder:
    """Makes what a program says, in one life of it: the program may have changed."""

    def __init__(self, world: World, *, changed: bool, stores: Mapping[str, Store | None]) -> None:
        self.world = world
        self.row = world.program.row
        self.seed = world.program.seed
        self.stores = stores
        self.change = self.row["change"] if changed else "no"
        self.limits: dict[str, int] = {}
        """Of fan-outs in flight and of actions, by name."""

    # -- what is executed -----------------------------------------------------------------------

    def leaf(self, name: str, at: int, *, last: bool) -> Act:
        """Make one step of a child: the first reads its item, a later one what the last wrote."""
        world, row, before, field = self.world, self.row, f"v{at - 1}", f"v{at}"
        mark = "@2" if self.change == "version" else ""
        version = "2" if mark else "1"
        if row["cache"] == "yes":  # which all runs in a store share, and both programs
            version = f"{version} of {world.name}{', the last' if last else ''}"
        is_bad = row["bad"] == "all acts" or (row["bad"] == "act" and last)
        asks = row["asks"] == "yes" and last

        def begin(item: object, context: Context | None) -> str:
            world.begin(context, name)
            world.enter(text_of(item))
            wrong = world.at("act", text_of(item))
            if number_of(item) % 3 == 1:
                world.misbehave(name, text_of(item))
            if number_of(item) % 2:
                world.kill_once(f"{name} {text_of(item)}")
            return wrong

        def finish(item: object, value: object) -> str:
            world.at("act end", text_of(item))
            if is_bad and (row["bad"] == "all acts" or number_of(item) % 3 == 1):
                world.fail_for_ever("act", text_of(item))
            return f"{name}{mark}({text_of(item)}{'' if at == 1 else f',{value}'})"

        async def work(item: object, context: Context, wrong: str) -> None:
            if wrong == "slow":
                await anyio.sleep(SLOW)
            if wrong == "later":
                raise RetryLater(1.0)
            await world.rest(name, text_of(item))
            if asks and number_of(item) % 2:
                answer = await context.ask("ok?", text_of(item))
                assert answer == "yes"

        async def live(item: object, value: object, context: Context) -> str:
            try:
                wrong = begin(item, context)
                async with world.manners():
                    await work(item, context, wrong)
                return finish(item, value)
            finally:
                world.end(context, name)

        def live_plainly(item: object, value: object, context: Context) -> str:
            try:
                begin(item, context)
                return finish(item, value)
            finally:
                world.end(context, name)

        async def stream(item: object, value: object, context: Context) -> AsyncIterator[Any]:
            try:
                wrong = begin(item, context)
                yield f"{name} begins {text_of(item)}"
                async with world.manners():
                    await work(item, context, wrong)
                yield Result(finish(item, value))
            finally:
                world.end(context, name)

        wrap = with_parameters(row["body"], at, has_context=row["cache"] == "no")
        bodies = {"async": live, "plain": live_plainly, "stream": stream}
        body = wrap(bodies[row["body"]])
        options: dict[str, Any] = {}
        if row["body"] == "plain" and row["executor"] == "loop":
            options["executor"] = "loop"
        if at == 1:
            options |= self._attempts(name)
        if row["cache"] == "yes":
            options["cache"] = math.inf
        made = action(
            reads=["item"] if at == 1 else ["item", before],
            writes=[field],
            name=name,
            version=version,
            **options,
        )
        return made(body)

    def _attempts(self, name: str) -> dict[str, Any]:
        row, options = self.row, dict[str, Any]()
        match row["act_limits"]:
            case "one":
                options["limits"] = Limits(1)
                self.limits[name] = 1
            case "rate":
                options["limits"] = Limits(rate=Rate(4))
            case "by":
                options["limits"] = Limits(1, by=lambda state: number_of(state["item"]) % 2)
                self.limits[name] = 2
            case _:
                pass
        match row["act_retry"]:
            case "yes":
                options["retry"] = Retry(3, on=Exception, initial=0.25, jitter=0)
            case "function":
                options["retry"] = Retry(3, on=self._is_retried, initial=0.25, jitter=0)
            case _:
                pass
        if row["act_timeout"] == "yes":
            options["timeout"] = LONG
        return options

    def _is_retried(self, error: Exception) -> bool:
        self.world.at("on")
        return True

    def child(self, prefix: str) -> tuple[Act, str]:
        """Make what a child of the fan-out in the middle executes; say what it writes last."""
        row, seed = self.row, self.seed
        nested = row["steps"] == "nested node"
        count = 1 if nested else int(row["steps"])
        if self.change == "step added":
            count += 1
        name = f"{prefix}x" if self.change == "renamed" else prefix
        steps = [self.leaf(f"{name}{at}", at, last=at == count) for at in range(1, count + 1)]
        if nested:
            steps = [Graph.chain(*steps, name=f"{name}node")]
        if len(steps) == 1:
            return steps[0], f"v{count}"
        named = seed % 2 and row["change"] != "step added"
        return Graph.chain(*steps, name=f"{name}chain" if named else None), f"v{count}"

    # -- fan-outs -------------------------------------------------------------------------------

    def element(self, item: object, number: int) -> object:
        text = f"{'e' if self.row['source'] == 'field' else text_of(item)}.{number}"
        return {"name": text} if self.row["keys"] == "field" else text

    def key_of(self, element: object) -> object:
        self.world.at("key", text_of(element))
        number = number_of(element)
        if self.row["bad"] == "key" and number == 1:
            return None
        if self.row["bad"] == "twice" and number == 2:
            number = 1
        return str(number) if self.row["keys"] == "str" else number

    def numbers(self) -> range:
        return range(1, 1 + int(self.row["width"]))

    def elements(self, item: object) -> list[object]:
        return [self.element(item, number) for number in self.numbers()]

    def over(self) -> Any:
        world = self.world

        def pulled(item: object) -> Iterator[object]:
            for element in self.elements(item):
                world.at("pull", text_of(element))
                yield element

        def listed(state: State) -> list[object]:
            world.at("over")
            return self.elements(state["item"])

        def generated(state: State) -> Iterator[object]:
            world.at("over")
            return pulled(state["item"])

        async def generated_async(state: State) -> AsyncIterator[object]:
            world.at("over")
            for element in pulled(state["item"]):
                await world.rest("pull", text_of(element))
                yield element

        made = {"list": listed, "generator": generated, "async": generated_async, "field": "xs"}
        return made[self.row["source"]]

    def focus(self) -> Act:
        """Make the fan-out in the middle."""
        form = self.row["form"]
        if form == "class":
            return self._class()
        if form in ("start", "start_each"):
            return self._own()
        row, child, field = self.row, *self.child("a")
        acts: Any = child
        if form in ("acts", "acts over"):
            acts = [child, self.child("b")[0]]
            if form == "acts":
                acts = [child, *(self.child(f"b{n}")[0] for n in self.numbers()[1:])]
        elif self.change == "one more act":
            acts = [child, self.child("b")[0]]
        if form == "chosen":

            def chosen(state: State) -> Act:
                return child

            acts = chosen
        options = self.policies("fan")
        options |= self.results("fan", field)
        options["each"] = self.each()
        options["timeout"] = 10 * LONG if row["timeout"] == "yes" else None
        options["name"] = "fan"
        reads = {"item"}
        if form != "acts":
            options |= {"over": self.over(), "item": "item"}
            options["key"] = "name" if row["keys"] == "field" else self._key()
            if row["source"] == "field":
                reads.add("xs")
            if row["grow"] == "yes":
                options["grow"] = self.grow
        options["reads"] = sorted(reads)
        return fan_out(acts, **options)

    def _key(self) -> Callable[[Any], object] | None:
        return None if self.row["keys"] == "none" else self.key_of

    def grow(self, state: State, outcome: Outcome) -> Iterator[object]:
        item = state["item"] if self.row["source"] != "field" else "e"
        for number in grown_from(number_of(outcome.element)):
            self.world.at("grow", number)
            yield self.element(item, number)

    def policies(self, name: str) -> dict[str, Any]:
        row = self.row
        options: dict[str, Any] = {"limits": self.fan_limits(name)}
        if row["store"] != "inherit":
            options["store"] = self.stores["own"] if row["store"] == "own" else None
        if row["hooks"] == "own":
            options["hooks"] = [witness(self.world)]
        if row["form"] in ("start", "start_each"):
            return options
        options["at_most"] = {"no": None, "few": 1, "ample": 50}[row["at_most"]]
        until = self.until()
        if until is not None:
            options["until"] = until
        if row["on_error"] != "fail":
            options["on_error"] = {
                "count": Tolerate(count=1), "share": Tolerate(share=0.5, after=2),
            }.get(row["on_error"], row["on_error"])  # fmt: skip
        if row["stagger"] != "no":
            options["stagger"] = {
                "seconds": 0.25, "inf": math.inf, "hedge": Hedge(initial=0.5, budget=0.5),
            }[row["stagger"]]  # fmt: skip
        return options

    def fan_limits(self, name: str) -> Limits | None:
        world = self.world

        def by(state: State) -> int:
            world.at("by", text_of(state["item"]))
            return number_of(state["item"]) % 2

        def cost(state: State) -> float:
            world.at("cost", text_of(state["item"]))
            number = number_of(state["item"])
            if self.row["bad"] == "cost" and number % 3 == 1:
                world.fail_for_ever("cost", number)
            return 1 + number % 2

        match self.row["limits"]:
            case "one":
                self.limits[name] = 1
                return Limits(1)
            case "two":
                self.limits[name] = 2
                return Limits(2)
            case "rate":
                self.limits[name] = 4
                return Limits(4) & Limits(rate=Rate(2))
            case "by":
                self.limits[name] = 2
                return Limits(1, by=by)
            case "cost":
                return Limits(rate=Rate(4, burst=4), cost=cost)
            case "composed":
                self.limits[name] = 3
                return Limits(3) & Limits(2, rate=Rate(5, burst=2), by=by)
            case _:
                return None

    def each(self) -> Each | None:
        row = self.row
        if row["each_retry"] == row["each_timeout"] == row["breaker"] == "no":
            return None
        retry = None
        if row["each_retry"] != "no":
            tries = 2 if row["each_retry"] == "yes" else 6
            retry = Retry(tries, on=Exception, initial=0.25, jitter=0)
        breaker = None
        if row["breaker"] != "no":
            breaker = Breaker(failures=2, cool_down=5.0)
            if row["breaker"] == "by":
                breaker = Breaker(failures=2, cool_down=5.0, by=self._breaker_key)
        timeout = 3 * LONG if row["each_timeout"] == "yes" else None
        return Each(retry=retry, timeout=timeout, breaker=breaker)

    def _breaker_key(self, state: State) -> int:
        self.world.at("by", text_of(state["item"]))
        return number_of(state["item"]) % 2

    def until(self) -> Any:
        def accept(value: object) -> bool:
            self.world.at("accept", value)
            if self.row["bad"] == "accept" and number_in(value) % 3 == 1:
                self.world.fail_for_ever("accept", value)
            return True

        def enough(state: State, outcome: Outcome) -> bool:
            self.world.at("until", outcome.key)
            return outcome.position >= 2

        def agrees(value: object) -> str:
            self.world.at("accept", value)
            return "the same"

        return {
            "all": None,
            "first": first(accept=accept),
            "first2": first(2, accept=accept),
            "quorum": quorum(2, by=agrees),
            "first_item": first_item(),
            "restart": first_item(on_break="restart"),
            "function": enough,
        }[self.row["until"]]

    def results(self, name: str, field: str) -> dict[str, Any]:
        row, world, options = self.row, self.world, dict[str, Any]()
        result = "reduce" if self.change == "folded" else row["result"]

        def take(state: State) -> object:
            world.at("take", text_of(state["item"]))
            if row["bad"] == "take" and number_of(state["item"]) % 3 == 1:
                world.fail_for_ever("take", text_of(state["item"]))
            return state[field]

        match result:
            case "into":
                options |= {"into": name, "take": field}
            case "take":
                options |= {"into": name, "take": take}
            case "reduce":
                options |= {"reduce": self.reducer(name), "writes": [name], "take": field}
            case _:
                options["take"] = field
        if row["known"] in ("again", "never again"):
            options["again"] = row["known"] == "again"
        if self.change == "folded":
            options.pop("again", None)
        if row["errors_into"] == "yes":
            options["errors_into"] = f"{name} errors"
        return options

    def reducer(self, name: str) -> Callable[[State, Outcome], State]:
        several = self.row["form"] in ("acts", "acts over") or self.change == "one more act"

        def reduce(state: State, outcome: Outcome) -> State:
            self.world.at("reduce", outcome.key)
            value = outcome.value if isinstance(outcome, Done) else "error"
            key = outcome.key
            if several:
                key = f"{outcome.act} {key}"
            return state.put(name, key, value)

        return reduce

    def _class(self) -> Act:
        child, field = self.child("a")
        builder = self
        several = self.row["steps"] in ("2", "3") or self.change == "step added"
        options = {k: v for k, v in self.policies("fan").items() if v is not None}

        def tasks(self: Any, state: State, inputs: object) -> Iterator[Task]:
            for element in builder.elements(state["item"]):
                builder.world.at("pull", text_of(element))
                key: Any = None if builder.row["keys"] == "none" else builder.key_of(element)
                yield Task(child, {"item": element}, key=key)

        async def tasks_async(self: Any, state: State, inputs: object) -> AsyncIterator[Task]:
            for task in tasks(self, state, inputs):
                await builder.world.rest("pull", task.key)
                yield task

        def reduce(self: Any, state: State, outcome: Outcome) -> State:
            builder.world.at("reduce", outcome.key)
            value: object = "error"
            if isinstance(outcome, Done):
                value = outcome.state.get(field, "?") if several else outcome.value
            return state.put("fan", outcome.key, value)

        space = {
            "name": "fan",
            "reads": ["item"],
            "writes": ["fan"],
            "tasks": tasks_async if self.row["source"] == "async" else tasks,
            "reduce": reduce,
            "each": self.each(),
            "timeout": 10 * LONG if self.row["timeout"] == "yes" else None,
            **options,
        }
        if self.row["until"] == "function":
            space["until"] = staticmethod(options["until"])
        return type("Fan", (ParallelAction,), space)()

    def _own(self) -> Act:
        """Make an action with a fan-out of its own."""
        child, field = self.child("a")
        row, world = self.row, self.world
        options = {k: v for k, v in self.policies("own/fan").items() if v is not None}
        options["each"] = self.each()
        options["timeout"] = 10 * LONG if row["timeout"] == "yes" else None

        def key_of(element: object) -> Any:
            return None if row["keys"] == "none" else self.key_of(element)

        async def own(item: Any, context: Context) -> list[list[Any]]:
            world.begin(context, "own", is_leaf=False)
            world.at("act", text_of(item))
            got = dict[Any, Any]()
            async with context.fan_out(name="fan", **options) as group:
                if row["form"] == "start":
                    for element in self.elements(item):
                        group.start(child, {"item": element}, key=key_of(element))
                else:
                    over = self.over()(State({"item": item}))
                    group.start_each(child, over=over, item="item", key=self._key())
                async for outcome in group:
                    world.at("reduce", outcome.key)
                    if isinstance(outcome, Done):
                        one = row["steps"] in ("1", "nested node") and self.change != "step added"
                        value = outcome.value if one else outcome.state.get(field, "?")
                        got[outcome.key] = value
                    elif isinstance(outcome, Failed) and row["on_error"] == "fail":
                        raise outcome.error
                    else:
                        got[outcome.key] = type(outcome).__name__
            await world.rest("own", text_of(item))
            world.at("own end", text_of(item))
            return [[key, got[key]] for key in sorted(got, key=str)]

        return action(reads=["item"], writes=["fan"], name="own")(own)

    # -- what is around it ----------------------------------------------------------------------

    def whole(self) -> Act:
        """Make the application's graph."""
        row = self.row
        parts: list[Act] = [self.focus()]
        place = row["place"]
        if "loop" in place:
            parts = [self._loop(parts[0])]
        if "node" in place:
            parts = [Graph.chain(*parts, name="node")]
        if place in ("fan", "fan node"):
            parts = [self._outer(parts[0])]
        if place == "own":
            parts = [self._outer_own(parts[0])]
        if row["after"] == "yes":
            parts.append(self._after())
        return parts[0] if len(parts) == 1 else Graph.chain(*parts, name="main")

    def _after(self) -> Act:
        world = self.world

        async def after(item: Any, context: Context) -> str:
            world.begin(context, "after")
            try:
                world.at("act", "after")
                await world.rest("after")
                world.at("act end", "after")
                return "after"
            finally:
                world.end(context, "after")

        return action(reads=["item"], writes=["after"], name="after")(after)

    def _loop(self, body: Act) -> Graph:
        world = self.world

        async def turn(item: Any, turns: int, context: Context) -> int:
            world.begin(context, "turn")
            try:
                world.at("act", "turn")
                return turns + 1
            finally:
                world.end(context, "turn")

        def again(state: State) -> bool:
            world.at("condition")
            return state["turns"] < 2

        tick = action(reads=["item", "turns"], writes=["turns"], name="turn")(turn)
        back = when(again, reads=["turns"])
        return Graph((body, tick), (tick, body, back), (tick, END), name="loop", entry=body)

    def outer_elements(self, item: object) -> list[str]:
        return [f"{text_of(item)}o.{n}" for n in range(1, 1 + int(self.row["outer_width"]))]

    def _outer(self, inner: Act) -> Act:
        row, world = self.row, self.world
        options: dict[str, Any] = {"name": "outer", "reads": ["item"], "item": "item"}
        fields = {"xs"} if row["source"] == "field" else set[str]()
        options["reads"] = sorted({"item"} | fields)

        def over(state: State) -> list[str]:
            return self.outer_elements(state["item"])

        def reduced(state: State) -> object:
            return state.get("fan", {}) if reduces else "done"

        options["over"] = over
        writes = "fan" if self.has_field() else None
        reduces = self.row["result"] == "reduce" or self.row["form"] == "class"
        take: Any = writes or reduced
        if row["outer_result"] == "reduce":

            def reduce(state: State, outcome: Outcome) -> State:
                world.at("reduce", outcome.key)
                value = outcome.value if isinstance(outcome, Done) else "error"
                return state.put("outer", outcome.key, value)

            options |= {"reduce": reduce, "writes": ["outer"], "take": take}
        else:
            options |= {"into": "outer", "take": take}
        if row["outer_result"] != "list":
            options["key"] = number_of
        if row["outer_on_error"] != "fail":
            share = Tolerate(share=0.5, after=2)
            options["on_error"] = share if row["outer_on_error"] == "share" else "collect"
            options["errors_into"] = "outer errors"
        if row["outer_until"] == "first":
            options["until"] = first()
        return fan_out(inner, **options, **self._outer_options("outer"))

    def _outer_options(self, name: str) -> dict[str, Any]:
        row, options = self.row, dict[str, Any]()
        if row["outer_retry"] == "yes":
            options["each"] = Each(retry=Retry(4, on=Exception, initial=0.25, jitter=0))
        match row["outer_limits"]:
            case "one":
                self.limits[name] = 1
                options["limits"] = Limits(1)
            case "rate":
                options["limits"] = Limits(rate=Rate(2))
            case _:
                pass
        if row["outer_store"] != "inherit":
            options["store"] = self.stores["outer"] if row["outer_store"] == "own" else None
        if row["outer_timeout"] == "yes":
            options["timeout"] = 30 * LONG
        return options

    def has_field(self) -> bool:
        """Tell whether the fan-out in the middle surely writes its field."""
        return self.row["result"] in ("into", "take") and self.row["form"] != "class"

    def _outer_own(self, inner: Act) -> Act:
        row, world = self.row, self.world
        options = self._outer_options("outer/outer")

        async def outer(item: Any, context: Context, **fields: Any) -> list[list[Any]]:
            world.begin(context, "outer", is_leaf=False)
            world.at("act", text_of(item))
            got = dict[Any, Any]()
            async with context.fan_out(name="outer", **options) as group:
                for element in self.outer_elements(item):
                    given = {"item": element, **fields}
                    group.start(inner, given, key=number_of(element))
                async for outcome in group:
                    world.at("reduce", outcome.key)
                    if isinstance(outcome, Done):
                        got[outcome.key] = outcome.state.get("fan", "?")
                    elif isinstance(outcome, Failed) and row["outer_on_error"] == "fail":
                        raise outcome.error
                    else:
                        got[outcome.key] = type(outcome).__name__
            world.at("own end", text_of(item))
            return [[key, got[key]] for key in sorted(got)]

        if row["source"] == "field":

            async def outer_xs(item: Any, xs: Any, context: Context) -> list[list[Any]]:
                return await outer(item, context, xs=xs)

            return action(reads=["item", "xs"], writes=["outer"], name="outer")(outer_xs)

        async def outer_plain(item: Any, context: Context) -> list[list[Any]]:
            return await outer(item, context)

        return action(reads=["item"], writes=["outer"], name="outer")(outer_plain)

    def given(self) -> dict[str, Any]:
        """Make what the run starts with."""
        given: dict[str, Any] = {"item": "r"}
        if "loop" in self.row["place"]:
            given["turns"] = 0
        if self.row["source"] == "field":
            given["xs"] = [self.element("e", number) for number in self.numbers()]
        if self.row["known"] != "no":
            key: Any = 1 if self.row["keys"] == "int" else "1"
            given["fan"] = {key: "known"}
        return given

    def application(self, store: Store | None, hooks: Iterable[Hook]) -> Application[Any]:
        row, options = self.row, dict[str, Any]()
        match row["app_limits"]:
            case "one":
                options["limits"] = Limits(1)
                self.limits["all"] = 1
            case "rate":
                options["limits"] = Limits(rate=Rate(8))
            case _:
                pass
        if row["observer"] != "no":
            hooks = [*hooks, Clumsy(self.world)]
        if row["executor"] != "loop":
            options["executor"] = Fake(workers=2)
        options["max_live"] = int(row["max_live"])
        return Application(self.whole(), name="borders", store=store, hooks=hooks, **options)


def number_in(value: object) -> int:
    """Give the number of the element that a value comes from."""
    found = re.search(r"\.(\d+)[,)]", str(value))
    return int(found.group(1)) if found else 1
