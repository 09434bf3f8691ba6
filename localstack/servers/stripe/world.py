"""The replica, as one account, called in process."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

# The replica asks for this function of newer Pythons.
os.process_cpu_count = getattr(os, "process_cpu_count", os.cpu_count)  # type: ignore[attr-defined]

import seahaven.http
from seahaven_stripe_world import world
from seahaven_stripe_world.http_api.handler import handle

ACCOUNT = "default"
OWN_KEY = [(b"authorization", b"Bearer sk_test_local"), (b"host", b"localhost")]

Headers = list[tuple[bytes, bytes]]


@dataclass
class Reply:
    """What the replica answered."""

    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""


class StripeWorld:
    """One account of the replica."""

    def __init__(self) -> None:
        self._app = seahaven.http.app(world, handle, reset_options={"startup": {"livemode": False}}, max_instances=10)

    async def call(
        self, method: str, path: str, query: str = "", headers: Headers | None = None, body: bytes = b""
    ) -> Reply:
        """One request to the account, such as ``GET /v1/events``."""
        reply = Reply()
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict:
            if waiting:
                return waiting.pop()
            await asyncio.Event().wait()  # the caller stays connected until it is answered
            raise AssertionError

        async def send(message: dict) -> None:
            if message["type"] == "http.response.start":
                reply.status, reply.headers = message["status"], list(message["headers"])
            else:
                reply.body += message.get("body", b"")

        full_path = f"/worlds/{ACCOUNT}{path}"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": full_path,
            "raw_path": full_path.encode(),
            "query_string": query.encode(),
            "headers": headers if headers is not None else OWN_KEY,
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
        }
        await self._app(scope, receive, send)
        return reply
