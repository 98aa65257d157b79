"""When a host may be asked.

- `spacing`: learns from refusals how fast to ask a host; `robots`: reads robots.txt.
- `health`: decides what happens to pages whose host is down.
"""
