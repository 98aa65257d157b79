"""Races behind HTTP, in the language of OpenAI's API.

- `service`: the endpoints; `offer`: the races behind them; `streams`: their events.
- `openai_api`: the messages; `serve`: listens on a socket.
"""
