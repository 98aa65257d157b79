from world import call

from shoal import Application, Limits, SQLiteStore, action, fan_out


@action(reads=["url"], writes=["page"])
async def fetch(url: str) -> str:
    return await call(url)


pages = fan_out(fetch, over="urls", item="url", key=str, into="pages", limits=Limits(4))
app = Application(pages, store=SQLiteStore("runs.db"))


async def main() -> dict[str, str]:
    urls = [f"page {n}" for n in range(20)]
    return dict((await app.run({"urls": urls}, id="map")).state["pages"])
