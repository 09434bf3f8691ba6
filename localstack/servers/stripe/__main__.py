"""Serve the Stripe replica: ``python -m servers.stripe PORT FOLDER``.

Webhooks go to STRIPE_WEBHOOK_URL, signed with STRIPE_WEBHOOK_SECRET.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from servers.browsers import OwnPagesOnly
from servers.stripe import checkout, control, invoices, life, pages, portal
from servers.stripe.faults import Faults
from servers.stripe.webhooks import Webhooks
from servers.stripe.world import StripeWorld

METHODS = ["GET", "POST", "DELETE"]
PAGES = tuple(route.path.partition("{")[0] for route in pages.ROUTES)
TICK_SECONDS = 30


async def health(_request: Request) -> Response:
    """For whoever waits for the server to start."""
    return JSONResponse({"status": "ok"})


async def replica(request: Request) -> Response:
    """Everything else: the replica's reply, completed."""
    return await request.app.state.faults.answer(request, lambda: serve(request))


async def serve(request: Request) -> Response:
    """What the replica answers when nothing goes wrong."""
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw)
    world: StripeWorld = request.app.state.world
    body = await request.body()
    reply = await run_in_threadpool(world.request, request.method, request.url.path, request.url.query, headers, body)
    return JSONResponse(reply.body, reply.status, dict(reply.headers))


async def keep_time(world: StripeWorld) -> None:
    """What becomes due happens."""
    while True:
        await run_in_threadpool(life.catch_up, world)
        await run_in_threadpool(checkout.expire_due, world)
        await asyncio.sleep(TICK_SECONDS)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Push webhooks while the server runs."""
    own = [*checkout.ROUTES, *portal.ROUTES, *invoices.ROUTES]
    world = StripeWorld(Path(sys.argv[2]) / "stripe.sqlite3", f"http://127.0.0.1:{sys.argv[1]}", own)
    app.state.world = world
    app.state.faults = Faults()
    app.state.webhooks = Webhooks(world, os.environ["STRIPE_WEBHOOK_URL"], os.environ["STRIPE_WEBHOOK_SECRET"])
    tasks = [asyncio.create_task(app.state.webhooks.run()), asyncio.create_task(keep_time(world))]
    for task in tasks:
        task.add_done_callback(_ended)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    world.close()


def _ended(task: asyncio.Task) -> None:
    """Without its webhooks or its time the server is of no use: it ends, and is started again."""
    if not task.cancelled():
        logging.error("a task of the server failed", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)


def is_page(method: str, path: str) -> bool:
    """The app leads a person to Stripe's pages, of which the forms are sent by themselves alone."""
    return method in ("GET", "HEAD") and path.startswith(PAGES)


def main() -> None:
    """Serve on the loopback interface until stopped."""
    routes = [
        Route("/health", health),
        *control.ROUTES,
        *pages.ROUTES,
        Route("/{path:path}", replica, methods=METHODS),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    uvicorn.run(OwnPagesOnly(app, is_page), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
