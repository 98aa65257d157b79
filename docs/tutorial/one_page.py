from news import download

from shoal import Application, action


@action(reads=["url"], writes=["text"])
async def fetch(url: str) -> str:
    return await download(url)


result = Application(fetch).run_sync({"url": "news/tide"})
print(result.state["text"])
