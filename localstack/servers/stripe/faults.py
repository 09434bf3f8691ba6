"""Failures of Stripe, made to order: it refuses, it is slow, or it does what it was asked and the answer is lost.

A failure of its own, a 5xx, Stripe saves under the request's idempotency key, and repeats it for as long as it knows
the key; one that tells to come later, such as 429, it does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send


@dataclass
class Fault:
    """What happens to the next `times` requests whose method, address or body contain `match`."""

    match: str
    times: int = 1
    status: int | None = None
    delay_seconds: float = 0
    lose: bool = False
    done: bool = False


class Lost(Response):
    """The beginning of an answer, and then the connection is cut."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Promise a body and send none."""
        headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


def _failure(status: int, headers: dict[str, str]) -> Response:
    error = {"type": "api_error", "message": "An error was asked for."}
    return JSONResponse({"error": error}, status, headers)


class Faults:
    """Those that are still to happen."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        # By their idempotency keys.
        self._failed: dict[str, int] = {}

    async def answer(self, request: Request, serve: Callable[[], Awaitable[Response]]) -> Response:
        """The reply, unless something is to go wrong or went wrong with the same key."""
        key = request.headers.get("idempotency-key")
        if key in self._failed:
            return _failure(self._failed[key], {"Stripe-Should-Retry": "false", "Idempotent-Replayed": "true"})
        fault = self._take(request, await request.body())
        if fault is None:
            return await serve()
        await asyncio.sleep(fault.delay_seconds)
        if fault.status:
            if key and fault.status >= 500:
                self._failed[key] = fault.status
            if fault.done:
                await serve()
            again = fault.status in (409, 429)
            return _failure(fault.status, {"Stripe-Should-Retry": str(again).lower()})
        reply = await serve()
        return Lost() if fault.lose else reply

    def add(self, wanted: dict[str, Any]) -> None:
        """Let something go wrong; `ValueError` when it is not understood."""
        try:
            fault = Fault(**wanted)
            sound = fault.times > 0 and 0 <= fault.delay_seconds <= 60 and 400 <= (fault.status or 400) <= 599
        except TypeError:
            sound = False
        if not sound or not isinstance(fault.match, str):
            raise ValueError("say match, and what of times, status (400-599), done, delay_seconds (up to 60) and lose")
        self._waiting.append(fault)

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self._waiting.clear()

    def _take(self, request: Request, body: bytes) -> Fault | None:
        form = unquote_plus(body.decode("utf-8", "replace"))
        words = f"{request.method} {request.url.path}?{request.url.query} {form}"
        for fault in self._waiting:
            if fault.match in words:
                fault.times -= 1
                if not fault.times:
                    self._waiting.remove(fault)
                return fault
        return None
