"""What a failure does to its fan-out: it ends it, or is collected, ignored, or tolerated."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import (
    END,
    Application,
    Cancelled,
    Done,
    ErrorInfo,
    Failed,
    Graph,
    Hook,
    Limits,
    Outcome,
    State,
    Tolerate,
    action,
    fan_out,
    when,
)
from shoal.errors import DefinitionError
from shoal.events import ChildEnded, StateUpdated
from shoal.testing import RecordingHook, no_leaks, run_virtual

from .test_fanout import history

pytestmark = pytest.mark.anyio

OnError = Literal["fail", "collect", "ignore"] | Tolerate


@action(reads=["item"], writes=["value"])
async def act(item: tuple[int, float, bool]) -> int:
    """Waits, then fails or not, as the element says."""
    number, after, fails = item
    await anyio.sleep(after)
    if fails:
        raise ValueError(number)
    return number


@action(reads=["item"], writes=["value"])
async def after_a_second(item: tuple[int, bool]) -> int:
    """All that a limit allows end in one tick, and so in one batch."""
    number, fails = item
    await anyio.sleep(1)
    if fails:
        raise ValueError(number)
    return number


def step(on_error: Any, **options: Any) -> Any:
    given: dict[str, Any] = {"over": "items", "into": "out", "key": first, **options}
    return fan_out(act, on_error=on_error, **given)


def first(item: tuple[int, object]) -> int:
    return item[0]


def failures(state: Mapping[str, Any]) -> list[int]:
    return list(state.get("bad", {}))


# -- against a model -------------------------------------------------------------------------------


class Model:
    """All children start at once and end one after the other: who ends how, by brute force."""

    def __init__(self, policy: OnError, ends: list[tuple[int, bool]]) -> None:
        """Take ``ends`` in the order of time: numbers, and whether each fails."""
        self.done: list[int] = []
        self.collected: list[int] = []  # as data
        self.failed: list[int] = []
        self.cancelled: list[int] = []
        self.raises = False
        for at, (number, fails) in enumerate(ends):
            (self.failed if fails else self.done).append(number)
            if self.too_many(policy, len(ends)):
                self.raises = True
                self.cancelled = [later for later, _ in ends[at + 1 :]]
                return
            if fails and policy != "ignore":
                self.collected.append(number)
        self.raises = self.too_many(policy, len(ends), at_end=True)

    def too_many(self, policy: OnError, total: int, *, at_end: bool = False) -> bool:
        failed, ended = len(self.failed), len(self.failed) + len(self.done)
        if isinstance(policy, str):
            return policy == "fail" and failed > 0
        if policy.count is not None:
            return failed > policy.count
        assert policy.share is not None
        judged = at_end or ended >= policy.after
        return judged and failed > policy.share * ended


policies = st.one_of(
    st.sampled_from(["fail", "collect", "ignore"]),
    st.builds(Tolerate, count=st.integers(0, 4)),
    st.builds(Tolerate, share=st.sampled_from([0, 0.25, 0.5, 0.75]), after=st.integers(0, 8)),
)
programs = st.lists(st.booleans(), max_size=7).flatmap(
    lambda fates: st.tuples(policies, st.just(fates), st.permutations(range(len(fates))))
)


async def check_program(policy: OnError, fates: list[bool], times: list[int]) -> None:
    items = [
        (n, after + 1.0, fails) for n, (fails, after) in enumerate(zip(fates, times, strict=True))
    ]
    in_time = sorted(items, key=lambda item: item[1])
    model = Model(policy, [(number, fails) for number, _, fails in in_time])
    collects = policy not in ("fail", "ignore")
    received: list[tuple[int, str]] = []
    reduced: list[tuple[int, str]] = []

    def grow(state: State, outcome: Outcome) -> Iterable[Any]:
        received.append((outcome.element[0], type(outcome).__name__))
        return []

    def reduce(state: State, outcome: Outcome) -> State:
        reduced.append((outcome.element[0], type(outcome).__name__))
        return state.increment(count=1)

    for join in ("into", "reduce"):
        how: dict[str, Any] = {"into": "out"} if join == "into" else {"into": None, "name": "out"}
        if join == "reduce":
            how |= {"reduce": reduce, "writes": ["count"]}
        graph = step(policy, errors_into="bad" if collects else None, grow=grow, **how)
        hook = RecordingHook()
        raised: list[int] = []
        received.clear()
        try:
            result = await Application(graph, hooks=[hook]).run({"items": items})
        except ExceptionGroup as group:
            raised = [error.args[0] for error in group.exceptions]
            noted = [getattr(error, "__notes__", []) for error in group.exceptions]
            for number, notes in zip(raised, noted, strict=True):
                assert f"of 'out', key {number}, run " in "".join(notes)
        else:
            assert [o.element[0] for o in result.outcomes("out")] == sorted(model.failed)
            if model.failed:
                with pytest.raises(ExceptionGroup) as caught:
                    result.raise_for_failures()
                errors = [error.args[0] for error in caught.value.exceptions]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportUnknownArgumentType]
                assert errors == sorted(model.failed)
            else:
                result.raise_for_failures()
        hook.assert_paired()
        assert raised == (sorted(model.failed) if model.raises else [])
        ends = [event.outcome for event in hook.of(ChildEnded)]
        for kind, expected in (
            (Done, model.done),
            (Failed, model.failed),
            (Cancelled, model.cancelled),
        ):
            found = sorted(o.element[0] for o in ends if isinstance(o, kind))
            assert found == sorted(expected), kind
        heard = [(n, "Done") for n in model.done] + [(n, "Failed") for n in model.collected]
        assert sorted(received) == sorted(heard)
        applied = [o.element[0] for o, _ in history(hook, {"items": items}) if o is not None]
        assert sorted(applied) == sorted(n for n, _ in heard)
        numbers = [e.update.number for e in hook.of(StateUpdated) if e.depth == 0]
        assert numbers == list(range(1, len(numbers) + 1))
        states = [state for _, state in history(hook, {"items": items})]
        final: Mapping[str, Any] = states[-1] if states else {}
        assert failures(final) == sorted(model.collected if collects else [])
        if join == "into":
            assert list(final["out"]) == sorted(model.done)
    assert sorted(reduced) == sorted(received)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(programs, st.integers(0, 9))
def test_every_policy_is_as_a_model_says(program: tuple[Any, Any, Any], seed: int):
    run_virtual(check_program, *program, backend="asyncio", seed=seed)
    run_virtual(check_program, *program, backend="trio", seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(deadline=None, max_examples=2000)
@given(programs, st.integers(0, 999))
def test_every_policy_is_as_a_model_says_often(program: tuple[Any, Any, Any], seed: int):
    run_virtual(check_program, *program, backend="asyncio", seed=seed)
    run_virtual(check_program, *program, backend="trio", seed=seed)


# -- in one batch ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "collected", "raised", "raised_together"),
    [
        ("fail", [], [0], [0, 2, 4]),
        ("collect", [0, 2, 4], [], []),
        (Tolerate(count=0), [], [0], [0, 2, 4]),
        (Tolerate(count=2), [0, 2], [0, 2, 4], [0, 2, 4]),
        (Tolerate(count=3), [0, 2, 4], [], []),
        (Tolerate(share=0.5), [], [0], [0, 2, 4]),
        (Tolerate(share=0.5, after=3), [0], [0, 2], [0, 2, 4]),
        (Tolerate(share=0.5, after=4), [0, 2], [0, 2, 4], [0, 2, 4]),
        (Tolerate(share=0.4, after=4), [0, 2], [0, 2], [0, 2, 4]),  # number 3, a success, ends it
        (Tolerate(share=0.5, after=9), [0, 2, 4], [0, 2, 4], [0, 2, 4]),  # judged at the end
        (Tolerate(share=0.6), [], [0], [0, 2, 4]),  # once too many, though 3 of 5 would not be
        (Tolerate(share=0.6, after=5), [0, 2, 4], [], []),
    ],
)
async def test_what_ends_together_is_judged_one_by_one_in_input_order(
    policy: OnError, collected: list[int], raised: list[int], raised_together: list[int]
):
    """Numbers 0, 2 and 4 of five fail, one after the other or all in one batch.

    What has failed by then is raised too, and what has succeeded is applied.
    """
    items = [(n, n % 2 == 0) for n in range(5)]
    decided = policy == Tolerate(share=0.4, after=4)
    applied_alone = [1, 3] if decided or not raised else [n for n in (1, 3) if n < raised[-1]]
    for limit, expected in ((1, raised), (5, raised_together)):
        hook = RecordingHook()
        options: dict[str, Any] = {"errors_into": "bad"} if policy != "fail" else {}
        graph = fan_out(
            after_a_second,
            over="items",
            key=first,
            into="out",
            on_error=policy,  # pyright: ignore[reportArgumentType] # any of them
            limits=Limits(limit),
            **options,
        )
        found: list[Any] = []
        try:
            await Application(graph, hooks=[hook]).run({"items": items})
        except ExceptionGroup as group:
            found = [error.args[0] for error in group.exceptions]
        final = history(hook, {"items": items})[-1][1]
        assert (failures(final), found) == (collected, expected)
        assert list(final["out"]) == ([1, 3] if limit > 1 else applied_alone)


async def test_the_others_are_cancelled_with_the_reason_and_awaited():
    cleaned: list[int] = []

    @action(reads=["item"], writes=["value"])
    async def perform(item: int) -> int:
        if item < 2:
            await anyio.sleep(item)
            raise ValueError(item)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
            cleaned.append(item)
            if item == 3:
                raise OSError(item)  # a failure of a cleanup joins them
        return item

    hook = RecordingHook()
    graph = fan_out(
        perform, over=lambda _: range(5), reads=[], into="out", on_error=Tolerate(count=1)
    )
    since = anyio.current_time()
    async with no_leaks():
        with pytest.raises(ExceptionGroup, match="3 children of fan-out 'out' failed") as caught:
            await Application(graph, hooks=[hook]).run({})
    assert anyio.current_time() - since == 6
    assert [str(error) for error in caught.value.exceptions] == ["0", "1", "3"]
    assert sorted(cleaned) == [2, 3, 4]
    ends = [e.outcome for e in hook.of(ChildEnded)]
    reasons = {o.key: o.reason for o in ends if isinstance(o, Cancelled)}
    assert reasons == dict.fromkeys((2, 4), "key 1 of fan-out 'out' failed: ValueError(1)")


async def test_a_share_that_a_success_decides_ends_the_step_then_and_there():
    items = [(0, 1, True), (1, 2, False), (2, 9, False)]
    hook = RecordingHook()
    app = Application(step(Tolerate(share=0.25, after=2)), hooks=[hook])
    since = anyio.current_time()
    with pytest.raises(ExceptionGroup, match="a child of fan-out 'out' failed"):
        await app.run({"items": items})
    assert anyio.current_time() - since == 2
    assert history(hook, {"items": items})[-1][1]["out"] == {1: 1}
    (cancelled,) = [e.outcome for e in hook.of(ChildEnded) if isinstance(e.outcome, Cancelled)]
    assert cancelled.reason == "too many children of fan-out 'out' failed"


async def test_skipped_children_count_for_nothing():
    items = [(n, 0, n == 3) for n in range(4)]
    app = Application(step(Tolerate(share=0.5)))
    with pytest.raises(ExceptionGroup):
        await app.run({"items": items, "out": {0: 0, 1: 1, 2: 2}})
    assert (await app.run({"items": items})).outcomes("out").failed == 1


# -- ignored, collected ----------------------------------------------------------------------------


async def test_ignored_failures_are_in_the_ledger_alone():
    items = [(0, 0, True), (1, 1, False), (2, 2, True), (3, 3, False)]
    hook = RecordingHook()
    result = await Application(step("ignore"), hooks=[hook]).run({"items": items})
    assert result.state["out"] == {1: 1, 3: 3}
    assert [number for number in hook.of(StateUpdated) if number.depth == 0][-1].update.number == 3
    ledger = result.outcomes("out")
    assert (ledger.done, ledger.failed, len(ledger), ledger.total) == (2, 2, 2, 4)
    ended = [e.outcome for e in hook.of(ChildEnded)]
    assert [(o.key, type(o)) for o in ended] == [(0, Failed), (1, Done), (2, Failed), (3, Done)]


@pytest.mark.parametrize("policy", ["collect", Tolerate(count=2)])
async def test_what_is_collected_has_its_text_and_no_traceback(policy: Any):
    result = await Application(step(policy, errors_into="bad")).run({"items": [(0, 0, True)]})
    (info,) = result.state["bad"].values()
    assert isinstance(info, ErrorInfo)
    assert (info.type, info.message) == ("ValueError", "0")
    assert "raise ValueError(number)" in info.traceback
    (outcome,) = result.outcomes("out")
    assert isinstance(outcome, Failed)
    assert outcome.error.__traceback__ is None
    assert "raised at" in "".join(traceback.format_exception(outcome.error))


async def test_what_is_raised_has_its_traceback_but_for_what_was_collected_before():
    with pytest.raises(ExceptionGroup) as caught:
        await Application(step(Tolerate(count=1))).run({"items": [(0, 0, True), (1, 1, True)]})
    collected, raised = caught.value.exceptions
    assert collected.__traceback__ is None
    assert any("shoal: raised at" in note for note in collected.__notes__)
    assert "raise ValueError(number)" in "".join(traceback.format_exception(raised))


async def test_failures_of_an_ignoring_fan_out_lose_their_tracebacks_too():
    result = await Application(step("ignore")).run({"items": [(0, 0, True)]})
    (outcome,) = result.outcomes("out")
    assert isinstance(outcome, Failed)
    assert outcome.error.__traceback__ is None


async def test_hooks_see_the_traceback_of_what_failed_while_it_was_cancelled():
    seen: list[str] = []

    class Look(Hook):
        def on_child_ended(self, event: ChildEnded) -> None:
            assert isinstance(event.outcome, Failed)
            seen.extend(traceback.format_exception(event.outcome.error))

    @action(reads=["item"], writes=["out"])
    async def fail_in_cleanup(item: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError(item)

    act = fan_out(fail_in_cleanup, over="items", into="out", on_error="collect")
    with anyio.move_on_after(1):
        await Application(act, hooks=[Look()]).run({"items": [1]})
    assert "raise LookupError(item)" in "".join(seen)


# -- the result ------------------------------------------------------------------------------------


async def test_outcomes_of_graphs_as_nodes_and_of_every_visit():
    @action(reads=["turn"], writes=["turn", "items"])
    async def prepare(turn: int) -> Mapping[str, object]:
        return {"turn": turn + 1, "items": [(n, 0, n <= turn) for n in range(4)]}

    node = Graph.chain(step("collect"), name="node")
    again = when(lambda turn: turn < 3)
    graph = Graph((prepare, node), (node, prepare, again), (node, END), entry=prepare)
    result = await Application(graph).run({"turn": 0})
    assert [result.outcomes("node/out", visit).failed for visit in range(3)] == [1, 2, 3]
    assert result.outcomes("node/out").failed == 3
    for wrong in (3, -4):
        with pytest.raises(KeyError, match="executed 'node/out' 3 times"):
            result.outcomes("node/out", wrong)
    with pytest.raises(KeyError, match=r"no fan-out named 'out' \(it did: node/out\)"):
        result.outcomes("out")
    with pytest.raises(ExceptionGroup, match="6 children of run") as caught:
        result.raise_for_failures()
    assert [str(error) for error in caught.value.exceptions] == ["0", "0", "1", "0", "1", "2"]


async def test_a_run_without_failures_or_fan_outs_raises_none():
    (await Application(step("collect")).run({"items": [(0, 0, False)]})).raise_for_failures()

    @action()
    async def nothing() -> None:
        await checkpoint()

    (await Application(nothing).run({})).raise_for_failures()


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"Tolerate takes either count= or share=: Tolerate\(count=3\)"),
        ({"count": 1, "share": 0.5}, "Tolerate takes either count= or share="),
        ({"count": -1}, r"Tolerate\(count=...\) takes a whole number of at least 0, not -1"),
        ({"count": 1.5}, r"Tolerate\(count=...\) takes a whole number"),
        ({"count": True}, r"Tolerate\(count=...\) takes a whole number"),
        ({"count": 1, "after": 2}, r"Tolerate\(after=...\) belongs to share="),
        ({"share": 1}, r"Tolerate\(share=...\) takes a number from 0 up to, but not, 1, not 1"),
        ({"share": -0.1}, r"Tolerate\(share=...\) takes a number"),
        ({"share": "0.1"}, r"Tolerate\(share=...\) takes a number"),
        ({"share": True}, r"Tolerate\(share=...\) takes a number"),
        ({"share": False}, r"Tolerate\(share=...\) takes a number"),
        ({"share": float("nan")}, r"Tolerate\(share=...\) takes a number"),
        ({"share": 0.1, "after": -1}, r"Tolerate\(after=...\) takes a whole number"),
        ({"share": 0.1, "after": None}, r"Tolerate\(after=...\) takes a whole number"),
    ],
)
def test_what_cannot_be_judged_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(DefinitionError, match=message):
        Tolerate(**options)


def test_a_policy_shows_what_it_is():
    assert repr(Tolerate(count=3)) == "Tolerate(count=3)"
    assert repr(Tolerate(share=0.1)) == "Tolerate(share=0.1)"
    assert repr(Tolerate(share=0.1, after=20)) == "Tolerate(share=0.1, after=20)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"on_error": "fail", "errors_into": "bad"},
            "errors_into= collects failures, but with on_er",
        ),
        ({"on_error": "ignore", "errors_into": "bad"}, "errors_into= .*'collect', not 'ignore'"),
        (
            {"on_error": Tolerate},
            r"on_error= is 'fail', 'collect', 'ignore' or Tolerate\(...\), not",
        ),
        ({"on_error": 3}, "on_error= is .* not 3"),
    ],
)
def test_policies_that_do_not_fit_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(DefinitionError, match=message):
        step(**options)
