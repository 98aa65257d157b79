"""Programs that crawl one site: `python -m benchmarks.crawlers.NAME URL CONCURRENCY OUT [VARIANT]`.

Each follows the links of a site within it, and writes a JSON object a line, with url, status and
title. They are what `benchmarks.crawl` compares the scraper with.
"""
