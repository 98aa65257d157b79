from news import Model, download, large, small

from shoal import Application, Each, Graph, Limits, Rate, Retry, action, fan_out, race


@action(reads=["url"], writes=["text"], timeout=5)
async def fetch(url: str) -> str:
    return await download(url)


@action(reads=["text"], writes=["summary"], limits=Limits(rate=Rate(10, per=1.0)))
async def ask(text: str, model: Model) -> str:
    try:
        return await model.summarise(text)
    except BaseException:
        print(f"{model.name} is stopped")
        raise


summarise = race(
    ask.bind(name="large", model=large),
    ask.bind(name="small", model=small),
    into="summary",
    accept=lambda summary: len(summary) < 40,
    stagger=0.1,
)
digest = fan_out(
    Graph.chain(fetch, summarise),
    over="urls",
    item="url",
    key=str,
    into="summaries",
    take="summary",
    on_error="collect",
    errors_into="failed",
    limits=Limits(2),
    each=Each(timeout=60, retry=Retry(3, on=(ConnectionError, TimeoutError), initial=0.01)),
)

if __name__ == "__main__":
    state = Application(digest).run_sync({"urls": ["news/tide", "news/fish"]}).state
    for url, summary in state["summaries"].items():
        print(f"{url}: {summary}")
