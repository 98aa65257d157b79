from crawlee import ConcurrencySettings
from crawlee.configuration import Configuration
from crawlee.crawlers import BasicCrawler, BasicCrawlingContext
from world import call


def links(url: str) -> list[str]:
    n = int(url.removeprefix("http://pages/"))
    return [f"http://pages/{m}" for m in (2 * n, 2 * n + 1) if m < 24]


async def main() -> dict[str, str]:
    crawler = BasicCrawler(
        configuration=Configuration(purge_on_start=False),
        concurrency_settings=ConcurrencySettings(desired_concurrency=4, max_concurrency=4),
        max_request_retries=0,
    )

    @crawler.router.default_handler
    async def visit(context: BasicCrawlingContext) -> None:
        url = context.request.url
        await context.push_data({"url": url, "page": await call(url)})
        await context.add_requests(links(url))

    await crawler.run(["http://pages/1"])
    data = await crawler.get_data()
    return {row["url"]: row["page"] for row in data.items}
