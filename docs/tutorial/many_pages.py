from news import download

from shoal import Application, action, fan_out


@action(reads=["url"], writes=["text"])
async def fetch(url: str) -> str:
    return await download(url)


digest = fan_out(fetch, over="urls", item="url", key=str, into="texts", take="text")
result = Application(digest).run_sync({"urls": ["news/tide", "news/rain", "news/fish"]})
for url, text in result.state["texts"].items():
    print(f"{url}: {text}")
