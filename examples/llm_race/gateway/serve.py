"""`serve`: the service on a socket, until it is stopped."""

import socket
import sys
from collections.abc import Sequence

import uvicorn

from examples.llm_race.client.config import ConfigError, chosen
from examples.llm_race.client.exchange import Prompt
from examples.llm_race.client.providers import Provider
from examples.llm_race.command.options import Options
from examples.llm_race.gateway.offer import Offer
from examples.llm_race.gateway.service import WITHIN, make_service
from examples.llm_race.race.spending import budget_of
from examples.llm_race.race.strategies import Rules

GRACE = 3
"""Seconds that the server waits for its connections after the races have ended."""
ON_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


def listening_at(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    """Listen on an address, for connections that send small messages at once.

    A socket of `socket.create_server` doesn't say that its protocol is TCP, and asyncio sets
    TCP_NODELAY only on those that do: a response of two parts, headers and a body, would wait 40 ms
    for the client's acknowledgement.

    Raises:
        OSError: It can't listen there.
    """
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


async def serve(
    options: Options, everybody: Sequence[Provider], rules: Rules, defaults: Prompt
) -> int:
    """Serve until SIGTERM or SIGINT. The address is the first line on stderr.

    Raises:
        ValueError: The configuration can't be served.
        OSError: It can't listen on that address.
    """
    if options.backend != "asyncio":
        raise ConfigError("uvicorn runs on asyncio alone: leave --backend out")
    service = make_service(
        Offer(
            providers=chosen(everybody, options.names),
            rules=rules,
            strategy=options.strategy,
            defaults=defaults,
            key_env=options.key_env,
            budget=budget_of(options.max_cost),
        )
    )
    config = uvicorn.Config(
        service,
        log_level="warning",
        ws="none",
        access_log=False,  # it would contain prompts
        timeout_graceful_shutdown=int(WITHIN) + GRACE,
    )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with listening_at(family, options.host, options.port) as listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}/v1", file=sys.stderr, flush=True)
        if options.key_env is None and options.host not in ON_THIS_MACHINE:
            print(
                "every client that can connect may spend money: see --key-env",
                file=sys.stderr,
                flush=True,
            )
        await uvicorn.Server(config).serve(sockets=[listening])
    return 0
