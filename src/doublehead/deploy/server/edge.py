"""Middleware for all requests: limits on the body, counting, and security headers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from doublehead.deploy.server.refusals import Refused

_POLICY = "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
"""For browsers: the page takes scripts, styles and data from this server alone."""

PATIENCE = 1.0
"""Seconds without data after which the rest of a rejected body is no longer read."""


class Edge:
    """ASGI middleware.

    Args:
        app: what it lies around.
        max_bytes: of a body, whether or not its length is said beforehand; reading stops there.
        seconds: for the whole body to arrive.
        seen: told the method, path, status and seconds of each request.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, seconds: float, seen: Callable[[str, str, int, float], object]
    ) -> None:
        self.app, self.max_bytes, self.seconds, self.seen = app, max_bytes, seconds, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(receive, self.max_bytes, self.seconds, Headers(scope=scope))
        status, began = 499, time.monotonic()  # 499, as nginx has it: the client left

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await body.discard()
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, body.receive, reply)
        except Exception:
            status = 500  # the answer is made outside
            raise
        finally:
            self.seen(scope["method"], scope["path"], status, time.monotonic() - began)


class _Body:
    """A request's body on its way in."""

    def __init__(self, receive: Receive, most: int, seconds: float, headers: Headers) -> None:
        self._receive, self._most = receive, most
        self._until = time.monotonic() + seconds
        said = headers.get("content-length", "")
        self._said = int(said) if said.isdecimal() else 0
        self._read = 0
        self._done = False

    async def receive(self) -> Message:
        """As ASGI has it.

        Raises:
            Refused: the body is too large, or too slow.
        """
        if self._done:
            return await self._receive()  # waits for the client to leave
        if self._said > self._most:
            raise self._too_large()
        message = await self._next(self._until - time.monotonic())
        if self._read > self._most:
            raise self._too_large()
        return message

    async def discard(self) -> None:
        """Read on and forget, at most as much again: a client that is still sending would not see the answer."""
        most = self._read + self._most
        try:
            while not self._done and self._read <= most:
                await self._next(min(PATIENCE, self._until - time.monotonic()))
        except Refused:
            return

    async def _next(self, seconds: float) -> Message:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, "too_slow", "the body did not arrive in time; send less, or faster") from None
        self._read += len(message.get("body", b""))
        self._done = not message.get("more_body", False)
        return message

    def _too_large(self) -> Refused:
        return Refused(413, "too_large", f"a request may have {self._most} bytes; send fewer or smaller images")
