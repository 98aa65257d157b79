"""Which links a crawl follows, and which are the same page: `links`, within a `scope`."""
