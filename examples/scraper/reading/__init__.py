"""What a page says.

- `document`: takes HTML apart, for the crawl and for parsers of one's own.
- `pages`: what a crawl keeps of a page, and sitemaps.
- `parsing`: does that in a process that can be killed, if necessary.
"""
