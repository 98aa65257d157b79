"""The race: several providers, one answer. Begin with `strategies`, then read `contestant`.

- `strategies`: eight ways to hold a race, written with shoal; `contestant`: the action of a race.
- `racing`: one race from a prompt to a report; `scoreboard`: a hook that records what each provider
  did; `spending`: what all requests may cost.
- `acceptance`: which answers count.
"""
