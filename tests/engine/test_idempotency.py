"""``context.idempotency_key``: one name for one effect, in each attempt, resume and process."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from shoal import (
    END,
    Application,
    Context,
    Each,
    Graph,
    MemoryStore,
    Retry,
    State,
    action,
    fan_out,
    when,
)
from shoal.errors import NotData

pytestmark = pytest.mark.anyio

keys = list[str]()


@pytest.fixture(autouse=True)
def no_keys() -> None:
    keys.clear()


@action(reads=["order", "amount"], writes=["receipt"])
async def pay(order: str, amount: int, context: Context) -> str:
    keys.append(context.idempotency_key)
    return f"{order}: {amount}"


async def test_each_attempt_has_the_same_key():
    @action(reads=["n"], writes=["out"], retry=Retry(3, on=OSError))
    async def flaky(n: int, context: Context) -> int:
        keys.append(context.idempotency_key)
        assert context.idempotency_key == keys[-1]
        if len(keys) < 3:
            raise OSError
        return n

    await Application(flaky).run({"n": 1})
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32


@pytest.mark.parametrize("each", [True, False], ids=["retried child", "resumed child"])
async def test_a_child_that_runs_again_from_its_start_has_the_same_keys(*, each: bool):
    @action(reads=["item"], writes=["one"])
    async def first(item: int, context: Context) -> int:
        keys.append(context.idempotency_key)
        return item

    @action(reads=["one"], writes=["two"])
    async def second(one: int, context: Context) -> int:
        keys.append(context.idempotency_key)
        if len(keys) < 3:
            raise OSError
        return one

    policy = Each(retry=Retry(2, on=OSError)) if each else None
    steps = Graph.chain(first, second, name="steps")
    app = Application(
        fan_out(steps, over="items", key=str, into="out", take="two", each=policy),
        store=MemoryStore(),
    )
    if not each:
        with pytest.raises(ExceptionGroup, match="a child of fan-out"):
            await app.run({"items": [7]}, id="r")
    result = await app.run({"items": [7]} if each else None, id="r")
    assert result.state["out"] == {"7": 7}
    assert keys[1] == keys[2] != keys[0]


async def test_a_run_started_again_by_its_id_has_the_same_key_in_another_process():
    # The literal is what makes this hold between processes: nothing depends on hash seeds.
    await Application(pay).run({"order": "o", "amount": 5}, id="run-1")
    await Application(pay, store=MemoryStore()).run({"order": "o", "amount": 5}, id="run-1")
    assert keys == ["e25c907d1539f68a91099f9661467677"] * 2


async def test_each_of_run_step_child_and_input_has_its_own_key():
    app = Application(pay)
    await app.run({"order": "o", "amount": 5}, id="a")
    await app.run({"order": "o", "amount": 5}, id="b")
    await app.run({"order": "o", "amount": 6}, id="a")
    await Application(pay.bind(name="pay2")).run({"order": "o", "amount": 5}, id="a")
    many = fan_out(pay, over="orders", item="order", key=str, into="receipts")
    await Application(many).run({"orders": ["o", "p"], "amount": 5}, id="a")
    assert len(set(keys)) == len(keys) == 6


async def test_a_loop_that_comes_back_has_another_key():
    @action(reads=["n"], writes=["n"])
    async def count(n: int, context: Context) -> int:
        keys.append(context.idempotency_key)
        return 1

    @action(reads=["m"], writes=["m"])
    async def step(m: int) -> int:
        return m + 1

    loop = Graph((count, step), (step, count, when(lambda m: m < 3)), (step, END), entry=count)
    await Application(loop).run({"n": 1, "m": 0})
    assert len(set(keys)) == len(keys) == 3


async def test_fields_that_it_does_not_read_versions_and_inputs_do_not_count():
    @action(reads=["order"], writes=["receipt"])
    async def charge(order: str, context: Context, client: object = None) -> str:
        keys.append(context.idempotency_key)
        return order

    newer = action(reads=["order"], writes=["receipt"], name="charge", version="2")(charge.function)
    await Application(charge).run({"order": "o", "other": 1}, id="a")
    await Application(charge).run({"order": "o", "other": 2}, id="a", inputs={"client": object()})
    await Application(newer).run({"order": "o"}, id="a")
    assert len(keys) == 3
    assert len(set(keys)) == 1


async def test_a_secret_takes_no_part_in_it():
    @action(reads=["token", "order"], writes=["receipt"])
    async def charge(token: str, order: str, context: Context) -> str:
        keys.append(context.idempotency_key)
        return order

    for token in ("one", "two"):
        await Application(charge).run(
            State({"token": token, "order": "o"}, secret={"token"}), id="a"
        )
    assert keys[0] == keys[1]


async def test_what_only_the_state_offers_counts_too_and_may_be_missing():
    @action(reads=["order", "note"], writes=["receipt"])
    async def charge(state: State[Any], context: Context) -> State[Any]:
        keys.append(context.idempotency_key)
        return state.update(receipt=state["order"])

    await Application(charge).run({"order": "o"}, id="a")
    await Application(charge).run({"order": "o", "note": "n"}, id="a")
    assert keys[0] != keys[1]


async def test_a_plain_function_has_it_in_its_thread():
    @action(reads=["order"], writes=["receipt"])
    def charge(order: str, context: Context) -> str:
        assert threading.current_thread() is not threading.main_thread()
        keys.append(context.idempotency_key)
        return order

    await Application(charge).run({"order": "o"}, id="a")
    assert len(keys[0]) == 32


async def test_a_field_that_no_process_could_recognise_is_refused_by_name():
    with pytest.raises(NotData, match=r"action 'pay' of run a has no idempotency key.*'amount'"):
        await Application(pay).run({"order": "o", "amount": threading.Lock()}, id="a")
