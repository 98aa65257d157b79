from world import call

from shoal import Application, Done, Limits, SQLiteStore, State, action, fan_out


def links(state: State, outcome: Done) -> list[str]:
    n = int(outcome.element.removeprefix("page "))
    return [f"page {m}" for m in (2 * n, 2 * n + 1) if m < 24]


@action(reads=["url"], writes=["page"])
async def visit(url: str) -> str:
    return await call(url)


crawl = fan_out(
    visit, over="starts", item="url", key=str, into="pages", grow=links, limits=Limits(4)
)
app = Application(crawl, store=SQLiteStore("runs.db"))


async def main() -> dict[str, str]:
    return dict((await app.run({"starts": ["page 1"]}, id="crawl")).state["pages"])
