"""``shoal ui``: serve a page over a store's runs, on this machine."""

from __future__ import annotations

import argparse
import secrets
import socket
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from ._lines import flush, shown, write
from ._store import Refused, add_store, given_store, shown_store
from .draw import imported

PORT = 8321
"""The port if none is given; if it is taken, a free one is used."""

ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 # compared with what was asked for

MISSING = (
    "shoal ui needs packages that aren't installed, such as {}: pip install 'shoal[web]'; and for "
    "its store, shoal[sqlite] or shoal[postgres]"
)


def add_to(commands: Any) -> None:
    """Add the command ``ui``."""
    what = "serve a page that shows what runs do, and where they can be steered"
    parser = commands.add_parser("ui", help=what, description=f"{what.capitalize()}.")
    add_store(parser)
    parser.add_argument(
        "--app",
        metavar="MODULE:NAME",
        action="append",
        default=[],
        help="an Application, or several in a list: its runs can be resumed, retried and answered "
        "on the page, and its graph is drawn; may be repeated",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=_port, help=f"the port (default: {PORT}, or a free one if that is taken)"
    )
    access = parser.add_mutually_exclusive_group()
    access.add_argument(
        "--token", help="the secret that the page needs, at least 16 characters (default: random)"
    )
    access.add_argument(
        "--read-only", action="store_true", help="without a token; then nothing can be changed"
    )
    parser.set_defaults(do=_serve)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:  # noqa: PLR2004 # the highest port
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535, 0 for a free one")
    return int(text)


def _serve(given: argparse.Namespace) -> int:
    try:
        from shoal.watch.ui import create_app  # noqa: PLC0415 # an optional dependency
        from shoal.watch.ui._serve import serve  # noqa: PLC0415 # as above
    except ImportError as error:
        raise Refused(MISSING.format(error.name or error)) from error
    store = cast("Any", given_store(given, may_be_new=bool(given.app)))
    applications = [each for name in given.app for each in _applications(name)]
    token: str | None = given.token
    if token is None and not given.read_only:
        token = secrets.token_urlsafe(24)
    name = shown_store(given)
    title = name if "://" in name else Path(name).name
    hosts = _hosts(given.host, has_token=token is not None)
    app = create_app(store, applications, token=token, hosts=hosts, name=title)
    with _listen(given.host, given.port) as listener:
        port: int = listener.getsockname()[1]
        host = "localhost" if given.host in ANYWHERE else given.host
        host = f"[{host}]" if ":" in host else host
        address = f"http://{host}:{port}/" + (f"?token={token}" if token else "")
        write(f"The runs of {shown(name)} are at {address}")
        write("Ctrl-C ends this server; it doesn't touch the runs of other processes.")
        flush()
        serve(app, listener)
    return 0


def _hosts(host: str, *, has_token: bool) -> list[str]:
    """Return the names under which the page may be reached."""
    named = ["localhost", "127.0.0.1", "::1", host]
    if host not in ANYWHERE:
        return named
    # Other names than this machine's lead here too. Only with a token is that harmless: a foreign
    # site whose name leads to this machine has no cookie of it.
    return ["*"] if has_token else [*named, socket.gethostname(), socket.getfqdn()]


def _listen(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, PORT if port is None else port), family=family)
    except OSError as error:
        if port is None:
            return socket.create_server((host, 0), family=family)
        msg = f"{host}, port {port}: {error.strerror or error}: give another --port, or 0"
        raise Refused(msg) from error


def _applications(name: str) -> list[Any]:
    """Import applications that are named as ``module:name``.

    Raises:
        Refused: There is no such module or name, or it is no application.
    """
    from shoal import Application  # noqa: PLC0415 # the command line is parsed without it

    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise Refused(f"--app takes module:name, not {name!r}")
    try:
        found: object = attrgetter(attribute)(imported(module, name))
    except AttributeError as error:
        raise Refused(f"--app {name}: {error}") from error
    several = cast("Iterable[Any]", found) if isinstance(found, Iterable) else [found]
    applications: list[Any] = [*several]
    for each in applications:
        if not isinstance(each, Application):
            kind = type(cast("object", each)).__name__
            raise Refused(f"--app {name} is not an Application, but a {kind}")
    return applications
