from news import Model, download, downloads, large, small

from shoal import Application, Each, Graph, Limits, Rate, Retry, SQLiteStore
from shoal import action, fan_out, race


@action(reads=["url"], writes=["text"], timeout=5)
async def fetch(url: str) -> str:
    return await download(url)


@action(reads=["text"], writes=["summary"], limits=Limits(rate=Rate(10, per=1.0)))
async def ask(text: str, model: Model) -> str:
    return await model.summarise(text)


summarise = race(
    ask.bind(name="large", model=large),
    ask.bind(name="small", model=small),
    into="summary",
    accept=lambda summary: len(summary) < 40,
    stagger=0.1,
)
digest = fan_out(
    Graph.chain(fetch, summarise, name="article"),
    over="urls",
    item="url",
    key=str,
    into="summaries",
    take="summary",
    on_error="collect",
    errors_into="failed",
    limits=Limits(1),
    each=Each(timeout=60, retry=Retry(3, on=(ConnectionError, TimeoutError), initial=0.01)),
)

if __name__ == "__main__":
    app = Application(digest, name="digest", store=SQLiteStore("digest.db"))
    urls = ["news/tide", "news/rain", "news/fish", "news/lost"]
    result = app.run_sync({"urls": urls}, id="monday")
    for url, summary in result.state["summaries"].items():
        print(f"{url}: {summary}")
    print("downloads:", downloads)
