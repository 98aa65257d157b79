"""What people and programs see of a crawl.

- `rows`: a row for each page, or the records of a parser; `files`: writes them, under `locks`.
- `progress`: counts and shows them.
"""
