"""One request and its answer, within limits of time, size and place.

- `fetch`: sends a request and reads the answer; `web`: the client, its connections and proxies.
- `addresses`: refuses private addresses; `cookies`: a jar with a bound.
- `urls`: parses URLs as browsers do; `http`: chooses the HTTP library.
"""
