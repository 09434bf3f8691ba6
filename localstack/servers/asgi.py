"""What applications that stand before another one have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable


async def read_body(receive: Callable) -> bytes | None:
    """The whole body of a request; none where the client has left."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def reply(send: Callable, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
    """A whole reply."""
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
