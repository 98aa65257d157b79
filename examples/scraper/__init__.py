"""A website scraper in small files: one durable fan-out that grows as links are found.

Run it with `python -m examples.scraper --demo`. To read it, begin with `tutorial`, which does
without the others, and then `crawl`, which uses the runtime. The other modules don't depend on it:

- `urls` parses URLs as browsers do, `scope` decides which part of the web belongs to a crawl, and
  `frontier` which links count and which are the same page.
- `fetch` sends one request and reads its answer, through `web`, which checks `addresses` and keeps
  `cookies`. `robots` reads robots.txt, `politeness` learns from refusals how fast to ask a host,
  and `health` decides what happens to pages whose host is down.
- `document` takes HTML apart, `pages` reads what a crawl keeps of it, and `parsing` runs that in a
  process that can be killed, if necessary. `spider` is the crawler with a parser of one's own.
- `job` keeps a crawl in a folder, and `resuming` decides which settings may change on resume.
  `rows` makes the rows that `output` writes to files (under `locks`), `progress` counts and shows
  them, and `status` prints the progress of a job from another process.
- `work` runs a crawl until it ends or is interrupted, `settings` holds its parameters, `page_limit`
  ends it early, and `cli` is the command line.

`mirror` is a separate program, a race. `demo_site` is a real site to crawl without a network.
"""
