"""Serve the Stripe replica: ``python -m servers.stripe PORT``.

Webhooks go to STRIPE_WEBHOOK_URL, signed with STRIPE_WEBHOOK_SECRET.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from servers.stripe import gaps
from servers.stripe.webhooks import Webhooks
from servers.stripe.world import StripeWorld

METHODS = ["GET", "POST", "DELETE"]

# Routes that the replica lacks; they are tried before it.
ROUTES: list[BaseRoute] = []


async def health(_request: Request) -> Response:
    """For whoever waits for the server to start."""
    return JSONResponse({"status": "ok"})


async def replica(request: Request) -> Response:
    """Everything else: the replica's reply, completed."""
    world: StripeWorld = request.app.state.world
    reply = await world.call(
        request.method, request.url.path, request.url.query, list(request.headers.raw), await request.body()
    )
    body = reply.body
    with contextlib.suppress(ValueError):
        value = json.loads(body)
        gaps.fill(value)
        body = json.dumps(value).encode()
    headers = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in reply.headers
        if name.lower() != b"content-length"
    }
    return Response(body, reply.status, headers)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Push webhooks while the server runs."""
    app.state.world = StripeWorld()
    app.state.webhooks = Webhooks(
        app.state.world, os.environ["STRIPE_WEBHOOK_URL"], os.environ["STRIPE_WEBHOOK_SECRET"]
    )
    pushing = asyncio.create_task(app.state.webhooks.run())
    yield
    pushing.cancel()


def main() -> None:
    """Serve on the loopback interface until stopped."""
    routes = [Route("/health", health), *ROUTES, Route("/{path:path}", replica, methods=METHODS)]
    app = Starlette(routes=routes, lifespan=lifespan)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
