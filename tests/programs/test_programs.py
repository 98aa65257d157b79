"""Programs as users write them: what they return, how long they take, what is told of them."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import anyio
import pytest

from shoal import Failed, Hook
from shoal.events import ChildEnded, StateUpdated, StepEnded
from shoal.testing import RecordingHook, no_leaks
from tests.programs import contest, crawler, pr_bot, refine

pytestmark = pytest.mark.anyio


class Service:
    """Something that takes a second to answer, and counts who waits for it."""

    def __init__(self) -> None:
        self.calls = 0
        self.peak = 0
        self._waiting = 0

    async def work(self, seconds: float = 1) -> None:
        self.calls += 1
        self._waiting += 1
        self.peak = max(self.peak, self._waiting)
        try:
            await anyio.sleep(seconds)
        finally:
            self._waiting -= 1


@contextmanager
def takes(seconds: float) -> Generator[None]:
    start = anyio.current_time()
    yield
    assert anyio.current_time() - start == pytest.approx(seconds, abs=1e-6)


# -- a bot for pull requests --------------------------------------------------------------------

COMMENTS = {"a.py": ["why?", "rename it!", "nice"], "b.py": [], "c.py": ["how?", "nice", "nice"]}


class Platform(Service):
    async def comments_on(self, file: str) -> list[pr_bot.Comment]:
        await self.work()
        texts = COMMENTS[file]
        return [pr_bot.Comment(number, file, text) for number, text in enumerate(texts)]


class Reviewer(Service):
    kinds: Mapping[str, str] = {"?": "question", "!": "change"}

    async def ask(self, task: str, text: str) -> str:
        await self.work()
        return self.kinds.get(text[-1], "praise") if task == "classify" else f"{task}: {text}"


async def test_the_bot_replies_to_each_comment_as_its_kind_wants() -> None:
    hook = RecordingHook()
    async with no_leaks():
        # 1 s to read four files, 2 s to classify six comments four at a time; the three replies
        # begin as soon as there is room
        with takes(4):
            review = await pr_bot.main(
                ["a.py", "b.py", "gone.py", "c.py"], Platform(), Reviewer(), hooks=[hook]
            )
    assert review.replies == {
        "a.py": {0: "answer by PEP 8: why?", 1: "a.py: patch by PEP 8: rename it!", 2: ""},
        "b.py": {},
        "c.py": {0: "answer by PEP 8: how?", 1: "", 2: ""},
    }
    assert list(review.replies) == ["a.py", "b.py", "c.py"]
    assert {file: error.type for file, error in review.unread.items()} == {"gone.py": "KeyError"}
    hook.assert_paired()
    taken = [event.step for event in hook.of(StepEnded) if event.depth == 2]
    assert {step: taken.count(step) for step in taken} == {
        "classify": 6,
        "answer": 2,
        "patch": 1,
        "skip": 3,
    }


async def test_the_bot_makes_four_calls_at_once_at_all_levels_together() -> None:
    platform, model = Platform(), Reviewer()
    files = ["a.py", "c.py", *(f"gone{n}.py" for n in range(6))]
    await pr_bot.main(files, platform, model)
    assert (platform.calls, platform.peak) == (8, pr_bot.CALLS)
    assert (model.calls, model.peak) == (9, pr_bot.CALLS)


async def test_a_comment_of_no_known_kind_costs_its_file_alone() -> None:
    model = Reviewer()
    model.kinds = {"?": "riddle"}
    review = await pr_bot.main(["a.py", "b.py"], Platform(), model)
    assert review.replies == {"b.py": {}}
    (error,) = review.unread.values()
    assert error.type == "ExceptionGroup"
    assert "'riddle' is not a valid Kind" in error.traceback


# -- a contest ----------------------------------------------------------------------------------


class Client(Service):
    def __init__(self, broken: str = "nothing") -> None:
        super().__init__()
        self._broken = broken

    async def complete(self, model: str, prompt: str) -> str:
        await self.work()
        if self._broken in f"{model}({prompt})":
            raise ConnectionError(self._broken)
        return prompt.rpartition("; ")[2] if model == "judge" else f"{model}({prompt})"


async def test_all_contestants_answer_and_a_judge_picks() -> None:
    client = Client()
    async with no_leaks():
        # 2 s, for the expert makes two calls, and 1 s for the judge. Then nine children, six at a
        # time: the last expert begins after 1 s.
        with takes(2 + 1 + 3):
            ended = await contest.main("why", client)
    assert ended.answers == {
        "small": "tiny-1(why)",
        "large": "huge-9(why)",
        "expert": "huge-9(check: tiny-1(why))",
    }
    assert list(ended.answers) == ["small", "large", "expert"]
    assert ended.winner == "expert: huge-9(check: tiny-1(why))"
    assert (ended.dropped, ended.gaps) == ({}, {})
    assert list(ended.table) == ended.variants == ["why", "Please, why", "In short, why"]
    assert all(list(row) == ["small", "large", "expert"] for row in ended.table.values())
    assert ended.table["In short, why"]["small"] == "tiny-1(In short, why)"
    assert client.peak == 6


async def test_one_contestant_may_fail_and_the_others_decide() -> None:
    ended = await contest.main("why", Client("check"))
    assert list(ended.answers) == ["small", "large"]
    assert ended.winner == "large: huge-9(why)"
    assert ended.dropped["expert"].type == "ConnectionError"
    assert list(ended.dropped) == ["expert"]
    assert [list(row) for row in ended.table.values()] == [["small", "large"]] * 3
    assert {question: list(row) for question, row in ended.gaps.items()} == {
        "why": ["expert"],
        "Please, why": ["expert"],
        "In short, why": ["expert"],
    }


async def test_two_contestants_may_not() -> None:
    hook = RecordingHook()
    with pytest.raises(ExceptionGroup, match="2 children of fan-out 'answers' failed") as caught:
        await contest.main("why", Client("tiny-1"), hooks=[hook])
    assert [type(error) for error in caught.value.exceptions] == [ConnectionError] * 2
    hook.assert_paired()
    ends = {event.outcome.act: type(event.outcome) for event in hook.of(ChildEnded)}
    assert ends["small"] is ends["expert"] is Failed


# -- a draft that is refined --------------------------------------------------------------------


class Writer(Service):
    """Each turn is better by 0.25 than the one before, but ``spelling`` is never quite content."""

    def __init__(self) -> None:
        super().__init__()
        self.advice: list[Mapping[str, str]] = []

    async def write(self, topic: str, remarks: Mapping[str, str]) -> str:
        await self.work()
        self.advice.append(dict(remarks))
        return f"{topic} {len(self.advice)}"

    async def criticise(self, text: str, critic: str) -> tuple[float, str]:
        await self.work(2 if critic == "spelling" else 1)
        turn = int(text.rpartition(" ")[2])
        return turn / 4 - (critic == "spelling") / 10, f"not {critic} enough in {text}"


CRITICS = ["style", "spelling", "facts"]


async def test_the_draft_is_refined_until_it_is_good() -> None:
    writer = Writer()
    async with no_leaks():
        with takes(4 * (1 + 2)):
            essay = await refine.main(refine.Essay("Fish", CRITICS), writer)
    assert (essay.text, essay.turn, essay.score) == ("Fish 4", 4, pytest.approx(0.9))
    assert list(essay.remarks) == CRITICS
    assert essay.remarks["facts"] == refine.Remark(1.0, "not facts enough in Fish 4")
    assert writer.advice[0] == {}
    assert writer.advice[3] == {critic: f"not {critic} enough in Fish 3" for critic in CRITICS}
    assert writer.peak == 3


async def test_the_draft_is_refined_while_there_is_patience() -> None:
    essay = await refine.main(refine.Essay("Fish", CRITICS, turns=2), Writer())
    assert (essay.turn, essay.score) == (2, pytest.approx(0.4))


async def test_the_draft_is_refined_step_by_step() -> None:
    async with no_leaks():
        steps = await refine.step_through(refine.Essay("Fish", ["facts"], turns=2), Writer())
    turns = [(name, pytest.approx(score)) for name, score in steps]
    assert turns == [
        ("write", 0.0),
        ("critique", 0.0),
        ("weigh", 0.25),
        ("write", 0.25),
        ("critique", 0.25),
        ("weigh", 0.5),
    ]


async def test_the_draft_is_watched_by_its_events() -> None:
    async with no_leaks():
        lines = await refine.watch(refine.Essay("Fish", ["spelling", "facts"], turns=2), Writer())
    assert lines == [
        "facts: not facts enough in Fish 1",
        "spelling: not spelling enough in Fish 1",
        "score: 0.15",
        "facts: not facts enough in Fish 2",
        "spelling: not spelling enough in Fish 2",
        "score: 0.4",
    ]


# -- a crawler ----------------------------------------------------------------------------------

SITE = {
    "/": "Home /a /b /gone /a",
    "/a": "A / /c /d",
    "/b": "B /c /e",
    "/c": "C",
    "/d": "D /f /g /h",
    "/e": "E /",
}


class Web(Service):
    async def get(self, url: str) -> str:
        await self.work()
        return SITE[url]


class Crawl(Protocol):
    async def __call__(
        self, starts: Sequence[str], web: crawler.Web, *, hooks: Sequence[Hook]
    ) -> crawler.Crawl: ...


@pytest.mark.parametrize("crawl", [crawler.main, crawler.by_hand], ids=["grown", "by_hand"])
async def test_the_crawler_finds_its_pages(crawl: Crawl) -> None:
    web, progress, hook = Web(), crawler.Progress(), RecordingHook()
    async with no_leaks():
        # /; then /a and /b; then /gone and /c; then /d and /e; then /f, and at_most is reached
        with takes(5):
            found = await crawl(["/"], web, hooks=[progress, hook])
    assert dict(found.titles) == {f"/{name.lower()}": name for name in "ABCDE"} | {"/": "Home"}
    assert found.broken.keys() == {"/gone", "/f"}
    assert (web.calls, web.peak) == (crawler.PAGES, crawler.AT_ONCE)
    assert progress.shown[0] == "1/1 / ok"
    assert progress.shown[-1] == "8/8 /f failed"
    assert sorted(line.partition(" ")[2] for line in progress.shown) == sorted(
        [f"{url} ok" for url in found.titles] + [f"{url} failed" for url in found.broken]
    )
    hook.assert_paired()


async def test_the_grown_crawl_keeps_each_page_as_it_arrives_and_the_other_none() -> None:
    grown, by_hand = RecordingHook(), RecordingHook()
    await crawler.main(["/"], Web(), hooks=[grown])
    await crawler.by_hand(["/"], Web(), hooks=[by_hand])
    updates = [event for event in grown.of(StateUpdated) if event.depth == 0]
    keys = [update.outcome.key for update in updates if update.outcome is not None]
    assert (keys[0], len(keys)) == ("/", crawler.PAGES)
    assert len([event for event in by_hand.of(StateUpdated) if event.depth == 0]) == 1
