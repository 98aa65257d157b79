"""A website scraper in a few small files: one fan-out that grows as links are found.

Run it with `python -m examples.scraper --demo`. To read it, begin with `crawl`, where the runtime
is at work, then `pages` (what a page is and which links count), `rows` and `progress` (two hooks),
and `__main__` (the command). `demo_site` is a real site to crawl without a network.
"""
