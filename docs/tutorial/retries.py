from news import Model, download, downloads, small

from shoal import Application, Each, Graph, Retry, action, fan_out


@action(reads=["url"], writes=["text"], timeout=5)
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
    on_error="collect",
    errors_into="failed",
    each=Each(timeout=60, retry=Retry(3, on=(ConnectionError, TimeoutError), initial=0.01)),
)
app = Application(digest, inputs={"model": small})
state = app.run_sync({"urls": ["news/busy", "news/lost"]}).state
print(state["summaries"].get("news/busy"))
print("downloads of news/busy:", downloads.count("news/busy"))
print("downloads of news/lost:", downloads.count("news/lost"))
