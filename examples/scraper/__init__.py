"""A website scraper in small files: one durable fan-out that grows as links are found.

Run it with `python -m examples.scraper --demo`. To read it, begin with `tutorial`, which does
without the others, and then `crawl`, which uses the runtime. Packages:

- `fetching`: one request and its answer, within limits of time, size and place.
- `politeness`: when a host may be asked, and what happens while it is down.
- `frontier`: which links count, and which are the same page.
- `reading`: what a page says, also to a parser of one's own; `spider` is the crawler with one.
- `output`: rows, files and the display.
- `command`: the command line, and the jobs that it keeps. `settings` has the parameters.

`demo_site` is a real site to crawl without a network.
"""
