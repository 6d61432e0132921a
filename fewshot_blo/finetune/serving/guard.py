"""``Guard``: answers requests of the page and of programs, and none that other pages make."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fewshot_blo.errors import installed_by

with installed_by(".[serve]"):
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.responses import JSONResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses requests for other hosts and from other pages, and adds headers to all responses.

    A page of another site may have its name point to this machine and then send requests here
    (DNS rebinding): they bear its name as their host. Other pages may send forms: browsers then say
    where they come from.

    Args:
        app: the application.
        host: the host that is served. On loopback its own names are accepted, on other hosts this
            one, and addresses, which no site can have as its name.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["method"])
        if refusal:
            await JSONResponse({"error": refusal}, 403)(scope, receive, sending)
        else:
            await self.app(scope, receive, sending)

    def _refusal(self, headers: Headers, method: str) -> str:
        """Why a request is not answered; empty if it is."""
        host = headers.get("host", "")
        if not self._accepts(host):
            return f"the host '{host}' is not served here: open the address that serve printed"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        foreign = origin is not None and urlsplit(origin).netloc != host
        if method not in ("GET", "HEAD") and (foreign or site not in ("same-origin", "none")):
            return "a page of another site sent this: use the page of this server"
        return ""

    def _accepts(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if is_loopback(self.host):
            return name in (*_LOOPBACK, self.host)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in ("localhost", self.host.lower())
        return True
