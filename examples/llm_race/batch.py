"""Many prompts, each a race, durable: after a kill, `--resume` continues with the rest.

Every result is in the store before it is visible. The file of results is made from the store: a row
is appended when its race is over, and never twice. If the process dies before a saved row is in the
file, the next one appends it, and an incomplete line is cut off.

    {"prompt": "why?", "id": "a", "system": "...", "max_tokens": 100}     or simply     "why?"
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO, cast

from anyio import to_thread

from examples.llm_race.client.exchange import Answer, Prompt
from examples.llm_race.client.providers import Provider
from examples.llm_race.race.contestant import Contestants
from examples.llm_race.race.racing import cut_off, new_client, scoreboard, why
from examples.llm_race.race.scoreboard import Lane, Scoreboard, out_of_time
from examples.llm_race.race.strategies import Rules, strategy
from shoal import (
    Application,
    Budget,
    Context,
    Done,
    Failed,
    Graph,
    Hook,
    Limits,
    Runtime,
    SQLiteStore,
    StepTimeout,
    action,
    fan_out,
)
from shoal.events import StateUpdated
from shoal.types import Act

RUN = "batch"


class BadInput(ValueError):
    """A line of the prompts file can't be read; the message says which."""


def read_prompts(lines: Iterable[str], defaults: Prompt) -> list[Prompt]:
    """Read one prompt per line; missing fields are taken from `defaults`.

    Raises:
        BadInput: A line is no prompt, or two have the same id.
    """
    found: list[Prompt] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = prompt_of(json.loads(line), number, defaults)
        except ValueError as error:
            raise BadInput(f"line {number}: {error}") from None
        if prompt.id in seen:
            raise BadInput(f"line {number}: the id {prompt.id!r} is taken")
        seen.add(prompt.id)
        found.append(prompt)
    return found


def prompt_of(said: object, number: int, defaults: Prompt) -> Prompt:
    if isinstance(said, str):
        said = {"prompt": said}
    if not isinstance(said, dict):
        raise BadInput("a text, or an object with a prompt, is wanted")
    given = cast("dict[str, Any]", said)
    unknown = given.keys() - {"id", "prompt", "system", "max_tokens"}
    if unknown:
        raise BadInput(f"{min(unknown)!r} is not known")
    text, limit = given.get("prompt"), given.get("max_tokens", defaults.max_tokens)
    if not isinstance(text, str) or not text:
        raise BadInput("it has no prompt")
    if type(limit) is not int or limit < 1:
        raise BadInput(f"max_tokens is a whole number from 1, not {limit!r}")
    return replace(
        defaults,
        text=text,
        id=str(given.get("id", number)),
        system=str(given.get("system", defaults.system)),
        max_tokens=limit,
        may_be_cut=defaults.may_be_cut or "max_tokens" in given,
    )


@action(reads=["prompt", "answer"], writes=["row"], executor="loop")
def write_row(
    prompt: Prompt, answer: Answer, board: Scoreboard, context: Context
) -> dict[str, Any]:
    """Make the row of a race that has an answer.

    If the process died between the race and this step, the losers' usage is unknown.
    """
    return row_of(prompt.id, answer, board.take(context.run_id, answer.provider))


def row_of(id: str, answer: Answer, lanes: Sequence[Lane]) -> dict[str, Any]:
    """The row of a race with an answer."""
    return {
        "id": id,
        "answer": answer.text,
        "provider": answer.provider,
        "finish": answer.finish,
        "error": None,
        **bill(lanes, answer),
    }


def bill(lanes: Sequence[Lane], answer: Answer | None = None) -> dict[str, Any]:
    """The usage and cost of a race, including losers."""
    used = [lane.usage for lane in lanes]
    if not lanes and answer is not None:
        used = [replace(answer.usage, is_reported=False)]
    costs = [lane.cost for lane in lanes]
    known = bool(lanes) and None not in costs
    return {
        "input_tokens": sum(usage.input_tokens for usage in used),
        "output_tokens": sum(usage.output_tokens for usage in used),
        "usage": "reported" if all(usage.is_reported for usage in used) else "estimated",
        "cost_usd": round(sum(cost or 0.0 for cost in costs), 9) if known else None,
        "lanes": [lane.row() for lane in lanes],
    }


def races(
    providers: Sequence[Provider], rules: Rules, at_once: int, budget: Budget | None = None
) -> Act:
    """Make the fan-out: a race for each of `prompts`, and a row of each in `rows`.

    What is spent of the budget is in the history of the batch, so `--resume` goes on from there.
    """
    return fan_out(
        Graph.chain(strategy(providers, rules, Contestants(budget)), write_row, name="race_one"),
        over="prompts",
        item="prompt",
        key="id",
        into="rows",
        take="row",
        errors_into="failed",
        on_error="collect",
        limits=Limits(at_once),
        name="batch",
    )


class Rows(Hook):
    """The file of results, which gets a row as soon as it is saved."""

    def __init__(self, path: Path, board: Scoreboard, rules: Rules) -> None:
        self.board = board
        self.rules = rules
        self.written = kept_rows(path)  # the ids of complete rows in the file
        self.answered = len(self.written)
        self.failed = 0
        self.file: TextIO = path.open("a", encoding="utf-8")

    async def on_state_updated(self, event: StateUpdated) -> None:
        outcome = event.outcome
        if event.depth == 0 and isinstance(outcome, Done):
            await self.add(outcome.value)
        elif event.depth == 0 and isinstance(outcome, Failed):
            error = outcome.error
            cut = cut_off(self.rules, self.board.lanes(outcome.run_id), error)
            if cut is not None:
                lanes = self.board.take(outcome.run_id, cut.provider)
                await self.add(row_of(str(outcome.key), cut, lanes))
                return
            if isinstance(error, StepTimeout):
                error = out_of_time(self.board.timeout)
            lost = {"error": why(error), **bill(self.board.take(outcome.run_id, None))}
            await self.add({"id": outcome.key, "answer": None, "provider": None, **lost})

    async def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, unless the file has it."""
        if row["id"] in self.written:
            return
        self.written.add(row["id"])
        self.answered += row["error"] is None
        self.failed += row["error"] is not None
        # In a thread, because the disk may be slow.
        await to_thread.run_sync(self._write, json.dumps(row) + "\n")

    def _write(self, line: str) -> None:
        self.file.write(line)
        self.file.flush()


def kept_rows(path: Path) -> set[str]:
    """Remove incomplete rows and rows without an answer from the file; return the ids of the rest.

    Raises:
        BadInput: The file contains a line that isn't one of our rows.
    """
    if not path.exists():
        return set()
    text = path.read_text(encoding="utf-8")
    kept: dict[str, str] = {}
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            row = json.loads(line)
            if row["error"] is None:
                kept[row["id"]] = line
        except (ValueError, LookupError, TypeError):
            raise BadInput(f"{path} holds something else than results of a batch") from None
    new = path.with_name(f"{path.name}.new")
    new.write_text("".join(f"{line}\n" for line in kept.values()), encoding="utf-8")
    new.replace(path)  # atomic: after a crash, either the old or the new file exists
    return set(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The inputs of a batch."""

    providers: Sequence[Provider]
    rules: Rules
    prompts: Sequence[Prompt]
    out: Path
    store: Path
    at_once: int = 8
    budget: Budget | None = None
    runtime: Runtime = field(default_factory=Runtime)

    async def run(self) -> Rows:
        """Run the remaining races, and return all rows.

        After a cancellation or a kill, the next call continues there.

        Raises:
            shoal.RunConflict: The store has a batch of other prompts.
        """
        board = scoreboard(self.providers, self.rules)
        rows = await to_thread.run_sync(Rows, self.out, board, self.rules)
        try:
            app = Application(
                races(self.providers, self.rules, self.at_once, self.budget),
                name="llm_race_batch",
                store=SQLiteStore(self.store),
                hooks=[board, rows],
            )
            async with self.runtime as runtime, new_client() as client:
                inputs = {"client": client, "board": board}
                state = {"prompts": list(self.prompts)}
                result = await app.run(state, id=RUN, inputs=inputs, runtime=runtime)
                # failed in an earlier execution: retry them
                if result.status == "succeeded" and result.state["failed"] and not rows.failed:
                    result = await app.retry_failed(RUN, inputs=inputs, runtime=runtime)
                # saved, but not written before the process died
                for row in result.state["rows"].values():
                    await rows.add(row.to_plain() if hasattr(row, "to_plain") else row)
                return rows
        finally:
            rows.file.close()

    async def settle(self) -> None:
        """Begin no more races, and wait for those under way: their answers are paid for."""
        run = self.runtime.find(RUN)
        if run is not None:
            run.drain("interrupted")
            await run.wait_ended()
