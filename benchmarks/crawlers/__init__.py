"""Programs that crawl one site: `python -m benchmarks.crawlers.NAME URL CONCURRENCY OUT [VARIANT]`.

Each follows the links within a site, and writes a JSON object per line, with url, status and title.
`benchmarks.crawl` compares the scraper with them.
"""
