from news import Model, download, small

from shoal import Application, Graph, action, fan_out


@action(reads=["url"], writes=["text"])
async def fetch(url: str) -> str:
    return await download(url)


@action(reads=["text"], writes=["summary"])
async def summarise(text: str, model: Model) -> str:
    return await model.summarise(text)


URLS = ["news/tide", "news/lost", "news/fish"]
steps = Graph.chain(fetch, summarise)

strict = fan_out(steps, over="urls", item="url", key=str, into="summaries", take="summary")
try:
    Application(strict, inputs={"model": small}).run_sync({"urls": URLS}, id="strict")
except* LookupError as failed:
    print("strict:", failed.exceptions[0])
    print("       ", failed.exceptions[0].__notes__[0])

lenient = fan_out(
    steps,
    over="urls",
    item="url",
    key=str,
    into="summaries",
    take="summary",
    on_error="collect",
    errors_into="failed",
)
state = Application(lenient, inputs={"model": small}).run_sync({"urls": URLS}).state
for url, summary in state["summaries"].items():
    print(f"lenient: {url}: {summary}")
for url, error in state["failed"].items():
    print(f"lenient: {url} failed: {error.type}: {error.message}")
