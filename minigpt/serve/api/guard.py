"""Check who may use the server, before anything else handles a request. Plain ASGI, so streams pass unchanged.

- Host must be a name of this server. A page of another site can make its own name mean 127.0.0.1 (DNS rebinding), but
  its requests then carry that name.
- Origin, which browsers add to a page's POST requests, must be this server too: pages of other sites may not use it.
- The key, if there is one, is compared in constant time, and is never logged.
- A body has a limit, also if its length is not given.
"""

import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from minigpt.serve.api.errors import ApiError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN = ("/health", "/")
"""Paths that need no key: load balancers ask for the first; the second is the page, which asks for the key itself."""
FILES = "/page/"
"""Path of the page's scripts and styles, which hold nothing of a run."""
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Guard:
    """Lets a request through, or answers it with an error.

    Args:
        app: the guarded app.
        hosts: names by which clients may call this server; None for any, if a key protects it.
        key: the key that clients send as `Authorization: Bearer KEY`; None: no key is needed.
        most: bytes of a body.
        seen: called with each answer's path and status.
    """

    def __init__(
        self,
        app: App,
        hosts: Collection[str] | None,
        key: str | None,
        most: int,
        seen: Callable[[str, int], None] = lambda path, status: None,
    ):
        self.app, self.hosts, self.key, self.most, self.seen = app, hosts, key, most, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as ASGI defines it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, read = False, 0

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", []), *HEADERS]
                self.seen(scope["path"], message["status"])
            await send(message)

        async def receiving() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise self._too_large()
            return message

        try:
            self._check(scope)
            await self.app(scope, receiving, sending)
        except ApiError as error:
            if begun:
                raise
            body = error.as_json().encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            headers += [(name.lower().encode(), value.encode()) for name, value in error.own_headers.items()]
            await sending({"type": "http.response.start", "status": error.status, "headers": headers})
            await sending({"type": "http.response.body", "body": body})

    def _check(self, scope: Scope) -> None:
        """Check host, origin and key. Raises ApiError."""
        headers = {name.lower(): value for name, value in reversed(scope["headers"])}
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self.hosts is not None and (name := _name(host)) not in self.hosts:
            fix = "start it with --allow-host and this name"
            raise ApiError(403, f"this server is not called {name!r}; {fix}", code="wrong_host")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        foreign = origin and _host_of(origin) != host
        cross = headers.get(b"sec-fetch-site") == b"cross-site" and scope["path"] not in OPEN  # a link may lead here
        if foreign or cross:
            raise ApiError(403, "a page of another site may not use this server", code="wrong_origin")
        if self.key is not None and scope["path"] not in OPEN and not scope["path"].startswith(FILES):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.key.encode()):
                raise ApiError(401, "the key is missing or wrong: send Authorization: Bearer KEY")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self.most:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request is larger than {self.most:,} bytes, the limit of this server")


def _name(host: str) -> str:
    """The host without its port: "[::1]:8000" -> "[::1]"."""
    head, colon, port = host.rpartition(":")
    return head if colon and port.isdigit() else host


def _host_of(origin: str) -> str:
    """Host and port of an Origin: "http://localhost:8000" -> "localhost:8000"; "null", or not a URL -> ""."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # a "[" without "]"
        return ""
