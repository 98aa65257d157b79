import time

import news
from news import Model, download, small

from shoal import Application, Each, Graph, Limits, Rate, Retry, action, fan_out


@action(reads=["url"], writes=["text"], timeout=5)
async def fetch(url: str) -> str:
    return await download(url)


@action(reads=["text"], writes=["summary"], limits=Limits(rate=Rate(10, per=1.0)))
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
    limits=Limits(2),
    each=Each(timeout=60, retry=Retry(3, on=(ConnectionError, TimeoutError), initial=0.01)),
)
app = Application(digest, inputs={"model": small})
began = time.monotonic()
state = app.run_sync({"urls": ["news/tide", "news/rain", "news/fish", "news/busy"]}).state
print(len(state["summaries"]), "summaries")
print("most downloads at once:", news.most_at_once)
print("longer than 0.3 seconds:", time.monotonic() - began > 0.3)
