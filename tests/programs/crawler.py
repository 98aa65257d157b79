"""A crawler that finds its own work: the links of each page are the next pages.

Twice the same: as a fan-out that grows, and by hand, as the action ``explore`` that starts children
from within its own loop. The first one keeps every result in the state as it arrives; the second
one can decide about each next page by whatever it likes, and writes once, at its end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, final

from shoal import Application, Context, Done, Failed, Graph, Hook, Limits, State, action, fan_out
from shoal.events import ChildEnded, ChildStarted

PAGES = 8
AT_ONCE = 2


class Web(Protocol):
    async def get(self, url: str) -> str: ...


class Page(TypedDict):
    title: str
    links: list[str]


@dataclass
class Crawl:
    titles: Mapping[str, str]
    broken: Mapping[str, str]


@final
class Progress(Hook):
    """Counts pages; a display would draw it."""

    observer = True

    def __init__(self) -> None:
        self.shown: list[str] = []
        self._started = 0
        self._ended = 0

    def on_child_started(self, event: ChildStarted) -> None:
        self._started += 1

    def on_child_ended(self, event: ChildEnded) -> None:
        self._ended += 1
        mark = "ok" if isinstance(event.outcome, Done) else "failed"
        self.shown.append(f"{self._ended}/{self._started} {event.outcome.key} {mark}")


@action(reads=["url"], writes=["html"])
async def fetch(url: str, web: Web) -> str:
    return await web.get(url)


@action(reads=["html"], writes=["title", "links"], executor="loop")
def parse(html: str) -> Page:
    title, *links = html.split()
    return {"title": title, "links": links}


page = Graph.chain(fetch, parse, name="page")


def links_of(state: State, outcome: Done | Failed) -> Iterable[str]:
    return outcome.state["links"] if isinstance(outcome, Done) else ()


crawl = fan_out(
    page,
    over="starts",
    item="url",
    key=str,
    into="titles",
    take="title",
    errors_into="broken",
    on_error="collect",
    grow=links_of,
    at_most=PAGES,
    limits=Limits(AT_ONCE),
)


@action(reads=["starts"], writes=["titles", "broken"])
async def explore(starts: Sequence[str], web: Web, context: Context) -> Mapping[str, object]:
    titles: dict[str, str] = {}
    broken: dict[str, str] = {}
    seen: set[str] = set()
    async with context.fan_out(name="pages", limits=Limits(AT_ONCE)) as group:

        def follow(urls: Iterable[str]) -> None:
            for url in urls:
                if url not in seen and len(seen) < PAGES:
                    seen.add(url)
                    group.start(page, {"url": url}, key=url)

        follow(starts)
        async for outcome in group:
            url = str(outcome.key)
            match outcome:
                case Done(state=state):
                    titles[url] = state["title"]
                    follow(state["links"])
                case Failed(error=error):
                    broken[url] = str(error)
                case _:
                    pass
    return {"titles": titles, "broken": broken}


async def main(starts: Sequence[str], web: Web, *, hooks: Sequence[Hook] = ()) -> Crawl:
    app = Application(crawl, hooks=hooks)
    result = await app.run({"starts": starts}, inputs={"web": web})
    broken = {url: error.message for url, error in result.state["broken"].items()}
    return Crawl(result.state["titles"], broken)


async def by_hand(starts: Sequence[str], web: Web, *, hooks: Sequence[Hook] = ()) -> Crawl:
    app = Application(explore, hooks=hooks)
    result = await app.run({"starts": starts}, inputs={"web": web})
    return Crawl(result.state["titles"], result.state["broken"])
