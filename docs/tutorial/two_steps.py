from news import Model, download, small

from shoal import Application, Graph, action, fan_out


@action(reads=["url"], writes=["text"])
async def fetch(url: str) -> str:
    return await download(url)


@action(reads=["text"], writes=["summary"])
async def summarise(text: str, model: Model) -> str:
    return await model.summarise(text)


digest = fan_out(
    Graph.chain(fetch, summarise),
    over="urls",
    item="url",
    key=str,
    into="summaries",
    take="summary",
)
app = Application(digest, inputs={"model": small})
result = app.run_sync({"urls": ["news/tide", "news/rain", "news/fish"]})
for url, summary in result.state["summaries"].items():
    print(f"{url}: {summary}")
