"""What Stripe has no route for: `/_replica/...`, to test with and to play with.

    # every event, oldest first, with its payload and what became of it
    curl 'localhost:4020/_replica/webhooks?customer=cus_1'
    # this customer's events from now on: ordered, duplicate, shuffle, hold or drop
    curl localhost:4020/_replica/webhooks -d '{"customer": "cus_1", "mode": "hold"}'
    # let them go after all: created, reversed or shuffled (with a seed)
    curl localhost:4020/_replica/webhooks/release -d '{"customer": "cus_1", "order": "reversed"}'
    # post these now, in this order, however often they are named, and say what was answered
    curl localhost:4020/_replica/webhooks/deliver -d '{"events": ["evt_2", "evt_1", "evt_2"]}'

Without `customer` each concerns everybody.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from servers.stripe.webhooks import EVERYBODY, MODES, Webhooks

ORDERS = ("created", "reversed", "shuffled")


async def list_webhooks(request: Request) -> Response:
    """Events and their deliveries, `limit` of them after event `after`."""
    query = request.query_params
    customer = query.get("customer", EVERYBODY)
    webhooks: Webhooks = request.app.state.webhooks
    rows = webhooks.deliveries(customer, int(query.get("limit", "1000")), query.get("after"))
    return JSONResponse({"waiting": webhooks.waiting(customer), "data": rows})


async def set_mode(request: Request) -> Response:
    """How events are delivered from now on."""
    wanted = await _body(request)
    if wanted.get("mode") not in MODES:
        return _refusal(f"mode is one of {', '.join(MODES)}")
    request.app.state.webhooks.mode(wanted.get("customer", EVERYBODY), wanted["mode"])
    return JSONResponse({"mode": wanted["mode"]})


async def release(request: Request) -> Response:
    """Deliver what was held or dropped."""
    wanted = await _body(request)
    order = wanted.get("order", "created")
    if order not in ORDERS:
        return _refusal(f"order is one of {', '.join(ORDERS)}")
    events = request.app.state.webhooks.release(wanted.get("customer", EVERYBODY), order, wanted.get("seed"))
    return JSONResponse({"events": events})


async def deliver(request: Request) -> Response:
    """Deliver the named events, in the order given, before this is answered."""
    wanted = await _body(request)
    try:
        answers = await request.app.state.webhooks.deliver(wanted.get("events", []), wanted.get("url"))
    except LookupError as error:
        return _refusal(str(error))
    return JSONResponse({"deliveries": answers})


async def _body(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(await request.body() or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _refusal(message: str) -> Response:
    return JSONResponse({"error": {"type": "invalid_request_error", "message": message}}, 400)


ROUTES = [
    Route("/_replica/webhooks", list_webhooks, methods=["GET"]),
    Route("/_replica/webhooks", set_mode, methods=["POST"]),
    Route("/_replica/webhooks/release", release, methods=["POST"]),
    Route("/_replica/webhooks/deliver", deliver, methods=["POST"]),
]
