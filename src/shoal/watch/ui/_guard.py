"""Check each request before anything else does, and put the security headers on each response.

Invariants:
- Only requests to a known host are served, so a foreign name that leads to this machine (DNS
  rebinding) reaches nothing.
- With a token, nothing but static files and the form for the token is served without it. Without
  one, nothing can be changed.
- A change needs a POST from one of these pages: a value that only the pages know, and, where the
  browser says where a request comes from, this same host. Cookies are ``SameSite=Strict``.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from typing import final
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._urls import own_address

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The hosts that a page is served for by default."""

HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

CSRF = "csrf"
"""The field of a form that shows that it comes from one of these pages."""


@final
class Door:
    """A token and what follows from it: the cookie, and the value in forms."""

    __slots__ = ("_token", "cookie", "form_value", "session")

    def __init__(self, token: str) -> None:
        """Make the door of ``token``."""
        self._token = token
        self.session = _derived(token, "session")
        self.form_value = _derived(token, "form")
        # Browsers share cookies between ports, so each server needs a name of its own.
        self.cookie = f"shoal-{_derived(token, 'name')[:8]}"

    def opens(self, given: str) -> bool:
        """Return whether ``given`` is the token."""
        return hmac.compare_digest(given.encode(), self._token.encode())

    def knows(self, request: Request) -> bool:
        """Return whether a request has the cookie, or the token as a bearer."""
        cookie = request.cookies.get(self.cookie, "")
        if hmac.compare_digest(cookie.encode(), self.session.encode()):
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.opens(given.strip())

    def let_in(self, request: Request, response: Response) -> Response:
        """Set the cookie."""
        path = request.scope.get("root_path", "") or "/"
        response.set_cookie(
            self.cookie,
            self.session,
            path=path,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    def allows(self, request: Request, form_value: str) -> bool:
        """Return whether a change comes from one of these pages."""
        site = request.headers.get("sec-fetch-site", "same-origin")
        origin = request.headers.get("origin")
        if site not in ("same-origin", "none"):
            return False
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
            return False
        return hmac.compare_digest(form_value.encode(), self.form_value.encode())


def _derived(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), purpose.encode(), sha256).hexdigest()


@final
class Guard:
    """ASGI middleware: hosts, the token, headers."""

    def __init__(
        self, app: ASGIApp, *, door: Door | None, hosts: Sequence[str], refuse: ASGIApp
    ) -> None:
        """Guard ``app``.

        Args:
            app: The application.
            door: The token; None if reading is open and nothing can be changed.
            hosts: The hosts that it is served for, without ports; "*" allows all.
            refuse: Answers requests without the token.
        """
        self._app = app
        self._door = door
        self._hosts = frozenset(host.strip("[]").lower() for host in hosts)
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._route(Request(scope))(scope, receive, send_guarded)

    def _route(self, request: Request) -> ASGIApp:
        host = host_of(request.headers.get("host", ""))
        if "*" not in self._hosts and host not in self._hosts:
            text = (
                f"this page is served for {', '.join(sorted(self._hosts))} only: open it at one of "
                f"these, or give hosts= (shoal ui: --host) the name that you use"
            )
            return PlainTextResponse(text, 400)
        if self._door is None or _is_open(request):
            return self._app
        given = request.query_params.get("token")
        if given is not None and request.method == "GET" and self._door.opens(given):
            # The token leaves the address at once, so that it stands in no history and no link.
            query = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
            address = own_address(request.scope, query)
            return self._door.let_in(request, RedirectResponse(address, 303))
        return self._app if self._door.knows(request) else self._refuse


def host_of(header: str) -> str:
    """Return the name in a Host header, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_open(request: Request) -> bool:
    root: str = request.scope.get("root_path", "")
    # Not of ``request.url``: that begins with the Host header, which may have a path of its own.
    path = request.scope["path"].removeprefix(root)
    return path.startswith("/static/") or path == "/token"
