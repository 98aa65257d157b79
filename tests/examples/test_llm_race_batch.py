"""Batches of scripted models: each prompt gets one row, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from examples.llm_race import Prompt, ProviderError, Rules, acceptance
from examples.llm_race.batch import BadInput, Batch, Rows, kept_rows, read_prompts
from shoal import RunConflict
from tests.examples.rivals import Rival

pytestmark = pytest.mark.anyio


def batch(folder: Path, rivals: list[Rival], count: int = 6, **given: Any) -> Batch:
    return Batch(
        providers=[rival.provider() for rival in rivals],
        rules=given.pop("rules", Rules(failures=1000)),
        prompts=[Prompt(text=f"q{n}", id=f"p{n}") for n in range(count)],
        out=folder / "out.jsonl",
        store=folder / "out.db",
        at_once=given.pop("at_once", 2),
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


async def test_each_prompt_gets_a_row_with_what_all_have_used(tmp_path: Path):
    slow, quick = Rival("slow", ttft=9), Rival("quick", text="yes")
    done = await batch(tmp_path, [slow, quick]).run()
    assert (done.answered, done.failed) == (6, 0)
    found = rows(tmp_path)
    assert {row["id"] for row in found} == {f"p{n}" for n in range(6)}
    row = found[0]
    assert (row["answer"], row["provider"], row["error"]) == ("yes", "quick", None)
    assert [lane["status"] for lane in row["lanes"]] == ["cancelled", "won"]
    assert row["usage"] == "estimated"
    assert row["cost_usd"] == pytest.approx((10 + 20 * 10 + 1) / 1e6)
    assert sorted(quick.prompts) == [f"q{n}" for n in range(6)]


async def test_an_interrupted_batch_loses_no_answer_that_was_asked_for(tmp_path: Path):
    rival = Rival("one", text="yes", ttft=1)
    work = batch(tmp_path, [rival])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work.run)
        await anyio.sleep(1.5)  # two are answered, and two others are being asked
        await work.settle()
    # The answers of the others are saved; the step that makes rows of them has not begun.
    assert (len(rows(tmp_path)), len(rival.asked_at)) == (2, 4)
    await batch(tmp_path, [rival]).run()
    assert len(rows(tmp_path)) == len(rival.asked_at) == 6


async def test_what_is_done_is_not_asked_again(tmp_path: Path):
    rival = Rival("only")
    with anyio.move_on_after(3.1):  # while the third and fourth are asked
        await batch(tmp_path, [rival]).run()
    assert len(rows(tmp_path)) == 4
    again = Rival("only")
    done = await batch(tmp_path, [again]).run()
    assert (done.answered, done.failed) == (6, 0)
    assert sorted(again.prompts) == ["q4", "q5"]
    assert sorted(row["id"] for row in rows(tmp_path)) == [f"p{n}" for n in range(6)]
    assert len(again.prompts) == 2
    await batch(tmp_path, [again]).run()
    assert len(again.prompts) == 2, "it is all done"
    assert len(rows(tmp_path)) == 6


async def test_a_row_that_was_saved_and_not_written_is_written_by_the_next(tmp_path: Path):
    await batch(tmp_path, [Rival("only")]).run()
    out = tmp_path / "out.jsonl"
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:20])  # as a crash may leave it
    rival = Rival("only")
    done = await batch(tmp_path, [rival]).run()
    assert rival.prompts == []
    assert done.answered == 6
    assert sorted(row["id"] for row in rows(tmp_path)) == [f"p{n}" for n in range(6)]


async def test_what_has_failed_has_a_row_and_is_tried_again(tmp_path: Path):
    gone = ProviderError("http", "404 gone", status=404)
    rival = Rival("only", fails=[None, gone, None, gone])
    done = await batch(tmp_path, [rival], at_once=1).run()
    assert (done.answered, done.failed) == (4, 2)
    failed = [row for row in rows(tmp_path) if row["error"]]
    assert [row["id"] for row in failed] == ["p1", "p3"]
    assert failed[0]["error"] == "404 gone"
    assert failed[0]["lanes"][0]["status"] == "failed"
    rival = Rival("only", fails=[gone])
    done = await batch(tmp_path, [rival], at_once=1).run()
    assert (done.answered, done.failed) == (5, 1)
    assert rival.prompts == ["q1", "q3"]
    done = await batch(tmp_path, [Rival("only")], at_once=1).run()
    assert (done.answered, done.failed) == (6, 0)
    assert len(rows(tmp_path)) == len({row["id"] for row in rows(tmp_path)}) == 6


async def test_an_answer_nobody_accepts_is_a_failure(tmp_path: Path):
    rules = Rules(accept=acceptance(regex="^yes"))
    done = await batch(tmp_path, [Rival("only", text="no")], 1, rules=rules).run()
    assert done.failed == 1
    [row] = rows(tmp_path)
    assert "nothing in it matches '^yes'" in row["error"]
    assert row["output_tokens"] == 20, "which was paid for"


async def test_a_timeout_is_said_as_it_was_given(tmp_path: Path):
    await batch(tmp_path, [Rival("slow", ttft=9)], 1, rules=Rules(timeout=0.05)).run()
    [row] = rows(tmp_path)
    assert row["error"] == row["lanes"][0]["detail"] == "timeout of 0.05 s"


async def test_other_prompts_are_another_batch(tmp_path: Path):
    await batch(tmp_path, [Rival("only")], 1).run()
    with pytest.raises(RunConflict):
        await batch(tmp_path, [Rival("only")], 2).run()


async def test_lanes_are_forgotten_when_their_row_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    boards: list[Any] = []
    made = Rows.__init__

    def remember(self: Rows, path: Path, board: Any, rules: Any) -> None:
        boards.append(board)
        made(self, path, board, rules)

    monkeypatch.setattr(Rows, "__init__", remember)
    gone = ProviderError("http", "404 gone", status=404)
    await batch(tmp_path, [Rival("a", fails=[None, gone]), Rival("b", fails=[None, gone])]).run()
    [board] = boards
    assert (board.races, board._began) == ({}, {})


# -- what goes in ------------------------------------------------------------------------------


def test_prompts_are_texts_or_objects() -> None:
    lines = ['"why?"', "", '{"prompt": "how?", "id": 7, "system": "s", "max_tokens": 5}']
    one, two = read_prompts(lines, Prompt(text="", system="default"))
    assert (one.text, one.id, one.system) == ("why?", "1", "default")
    assert (two.text, two.id, two.system, two.max_tokens) == ("how?", "7", "s", 5)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["{"], "line 1: "),
        (["3"], "line 1: a text, or an object with a prompt"),
        (['{"text": "x"}'], "line 1: 'text' is not known"),
        (['"x"', '{"id": 1}'], "line 2: it has no prompt"),
        (['{"prompt": "x", "max_tokens": 0}'], "whole number from 1"),
        (['{"prompt": "x", "id": "a"}', '{"prompt": "y", "id": "a"}'], "line 2: the id 'a' is"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(lines: list[str], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        read_prompts(lines, Prompt(text=""))


@pytest.mark.parametrize("text", ["my notes\n", "[1]\n", '{"a": 1}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes"
    path.write_text(text)
    with pytest.raises(BadInput, match="something else"):
        kept_rows(path)
    assert path.read_text() == text
