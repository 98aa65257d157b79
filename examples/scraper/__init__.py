"""A website scraper in small files: one durable fan-out that grows as links are found.

Run it with `python -m examples.scraper --demo`. To read it, begin with `crawl`, where the runtime
is at work. What it works with stands on its own:

- `urls` reads addresses as browsers do, `scope` is the part of the web that belongs to a crawl, and
  `frontier` knows which links count, and which are the same page.
- `fetch` is one request and its answer, on `web`, which connects by `addresses` and has a jar of
  `cookies`. `robots` are the wishes of sites, `politeness` is how fast a host is asked, learned
  from its refusals, and `health` is what becomes of pages whose host is down.
- `pages` are what is read from HTML, and `parsing` is where: in a process that can be stopped, if
  need be.
- `job` keeps a crawl in a folder, and `resuming` says what may change when it goes on. `rows` are
  what people read of it, which `output` writes to files (under `locks`), `progress` counts and
  shows, and `status` looks up from outside.
- `work` puts all of it together, until it is interrupted; `settings` are its parameters, and `cli`
  the command line.

`mirror` is a race of its own. `demo_site` is a real site to crawl without a network.
"""
