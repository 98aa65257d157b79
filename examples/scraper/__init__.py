"""A website scraper in small files: one durable fan-out that grows as links are found.

Run it with `python -m examples.scraper --demo`. To read it, begin with `crawl`, where the runtime
is at work. What it works with stands on its own: `frontier` (which links count, and which are the
same page), `fetch` (one request and its answer, on `web`, which connects by `addresses`), `robots`,
`politeness` (how fast a host is asked, learned from its refusals), `pages` (what is read from
HTML). `job` keeps a crawl in a folder; `rows` are what people read of it, which `output` writes to
files, `progress` counts and shows, and `status` looks up from outside. `work` puts all of it
together, until it is interrupted; `settings` are its parameters, and `cli` the command line.
`mirror` is a race of its own. `demo_site` is a real site to crawl without a network.
"""
