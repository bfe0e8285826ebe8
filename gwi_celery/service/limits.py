"""How much of a request is read: nothing that a stranger sends may grow without limit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gwi_celery.service.answers import Json

#: Most bytes of a request's head: names and values of its headers, and its path.
MAX_HEAD = 32 * 1024


class HeadLimit:
    """Middleware that refuses requests by their head alone, whatever they ask for.

    It refuses a head that is too long (431), one with two lengths, from which a proxy in front may have
    read another body (400, and the connection ends), and a path with characters that no path here has
    (404), since a route's pattern would match a line end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)


def _refusal(scope: Scope) -> ASGIApp | None:
    headers = scope["headers"]
    size = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    size += sum(len(name) + len(value) for name, value in headers)
    if size > MAX_HEAD:
        return Json({"reason": f"the head is over {MAX_HEAD} bytes"}, 431)
    if {b"content-length", b"transfer-encoding"} <= {name.lower() for name, _ in headers}:
        close = {"Connection": "close"}
        return Json({"reason": "it has both a length and a transfer encoding"}, 400, close)
    if not scope["path"].isprintable():
        return Json({"reason": "Not Found"}, 404)
    return None


#: Bytes: a body of this size always finds room beside larger ones.
SMALL = 256 * 1024
#: Share of the memory for bodies that those over SMALL may use.
_FOR_LARGE = 0.75


class Budget:
    """Bytes of request bodies that may be in memory at a time, over all requests."""

    def __init__(self, total: int) -> None:
        self.left = total
        self.left_for_large = round(_FOR_LARGE * total)

    @asynccontextmanager
    async def body(self, request: Request, *, limit: int, timeout: float) -> AsyncIterator[Body]:
        """The request's body, counted until it is released, or the block ends.

        Raises HTTPException: 413 over ``limit`` bytes, 408 not there after ``timeout`` seconds,
        429 when other requests have used up the memory.
        """
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise HTTPException(413, f"the body is over {limit} bytes")
        body = Body(self)
        chunks: list[bytes] = []
        try:
            try:
                with anyio.fail_after(timeout):
                    async for chunk in request.stream():
                        if body.size + len(chunk) > limit:
                            raise HTTPException(413, f"the body is over {limit} bytes")
                        body.count(len(chunk))
                        if self.left < 0 or (body.is_large and self.left_for_large < 0):
                            raise HTTPException(
                                429, "too many large requests at once", {"Retry-After": "5"}
                            )
                        chunks.append(chunk)
            except TimeoutError:
                raise HTTPException(408, f"the body was not there in {timeout:g} s") from None
            body.data = b"".join(chunks)
            chunks.clear()
            yield body
        finally:
            chunks.clear()
            body.release()


class Body:
    """What was read of one request, and is counted against the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.data = b""
        self.size = 0

    @property
    def is_large(self) -> bool:
        return self.size > SMALL

    def count(self, more: int) -> None:
        """Add to the count of bytes; a negative number subtracts."""
        large = self.size if self.is_large else 0
        self.size += more
        self._budget.left -= more
        self._budget.left_for_large -= (self.size if self.is_large else 0) - large

    def release(self, but: int = 0) -> None:
        """Let go of the body. ``but``: bytes of it that are kept elsewhere and still count."""
        self.data = b""
        self.count(but - self.size)
