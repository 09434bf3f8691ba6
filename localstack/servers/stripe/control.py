"""What Stripe has no route for: `/_replica/...`, to test with and to play with.

    # every event, oldest first, with its payload and what became of it
    curl 'localhost:4020/_replica/webhooks?customer=cus_1'
    # this customer's events from now on: ordered, duplicate, shuffle, hold or drop
    curl localhost:4020/_replica/webhooks -d '{"customer": "cus_1", "mode": "hold"}'
    # let them go after all: created, reversed or shuffled (with a seed)
    curl localhost:4020/_replica/webhooks/release -d '{"customer": "cus_1", "order": "reversed"}'
    # post these now, in this order, however often they are named, and say what was answered
    curl localhost:4020/_replica/webhooks/deliver -d '{"events": ["evt_2", "evt_1", "evt_2"]}'

Without `customer` each concerns everybody. Time moves for one customer at a
time, with all that happens on the way; it never goes back, except for one of whom nothing
is known yet, whose whole life is then so much earlier:

    # to the hour after the end of the period or trial, when the renewal is paid
    curl localhost:4020/_replica/advance -d '{"subscription": "sub_1", "to": "renewal"}'
    # to the end of the period, when the renewal's invoice is a draft
    curl localhost:4020/_replica/advance -d '{"subscription": "sub_1", "to": "period_end"}'
    # until the payments that failed were tried for the last time
    curl localhost:4020/_replica/advance -d '{"customer": "cus_1", "to": "last_retry", "when_unpaid": "mark_unpaid"}'
    curl localhost:4020/_replica/advance -d '{"customer": "cus_1", "seconds": 86400}'
    curl localhost:4020/_replica/advance -d '{"customer": "cus_1", "to": 1830000000}'

Stripe may fail, for the next `times` requests that contain `match`, such as an id:

    curl localhost:4020/_replica/faults -d '{"match": "POST /v1/subscriptions", "status": 503, "times": 3}'
    # a failure that comes after the work; with a 5xx, the same idempotency key gets no other answer
    curl localhost:4020/_replica/faults -d '{"match": "cus_1", "status": 500, "done": true}'
    # done, but nobody learns of it; or done in its own time
    curl localhost:4020/_replica/faults -d '{"match": "cus_1", "lose": true}'
    curl localhost:4020/_replica/faults -d '{"match": "cus_1", "delay_seconds": 8}'
    curl -X DELETE localhost:4020/_replica/faults

`when_unpaid` is what a subscription becomes after the last try, from then on:
`cancel` (as long as nothing is said), `mark_unpaid` or `leave_past_due`. Objects
bear the times that were moved to (an event's is `happened` here); an event's own
`created` is the real time, so that whoever lists recent events finds it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from servers.stripe import life
from servers.stripe.webhooks import EVERYBODY, MODES, Webhooks
from servers.stripe.world import StripeWorld, customer_in

ORDERS = ("created", "reversed", "shuffled")


async def list_webhooks(request: Request) -> Response:
    """Events and their deliveries, `limit` of them after event `after`."""
    query = request.query_params
    customer = query.get("customer", EVERYBODY)
    webhooks: Webhooks = request.app.state.webhooks
    limit = query.get("limit", "1000")
    if not limit.isdecimal():
        return _refusal("limit is a number")
    rows = webhooks.deliveries(customer, int(limit), query.get("after"))
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


async def advance(request: Request) -> Response:
    """Move a customer's time on; the events of the way."""
    wanted = await _body(request)
    try:
        answer = await run_in_threadpool(_advance, request.app.state.world, request.app.state.webhooks, wanted)
    except ValueError as error:
        return _refusal(str(error))
    return JSONResponse(answer)


def _advance(world: StripeWorld, webhooks: Webhooks, wanted: dict[str, Any]) -> dict[str, Any]:
    subscription = wanted.get("subscription")
    customer = world.quietly(lambda ctx: customer_in(ctx, str(subscription or wanted.get("customer"))))
    if customer is None:
        raise ValueError("name a customer or a subscription that there is")
    when_unpaid = wanted.get("when_unpaid")
    if when_unpaid not in (None, *life.END_BEHAVIORS):
        raise ValueError(f"when_unpaid is one of {', '.join(life.END_BEHAVIORS)}")
    known = webhooks.newest(customer)
    if wanted.get("to") == "last_retry":
        while until := world.quietly(lambda ctx: life.next_retry(ctx, customer)):
            life.advance(world, customer, until, when_unpaid)
    else:
        until = _target(world, customer, subscription, wanted)
        if until < world.time_of(customer) and not world.quietly(lambda ctx: life.is_new(ctx, customer)):
            raise ValueError("time does not go back")
        life.advance(world, customer, until, when_unpaid)
    rows = webhooks.deliveries(customer, 100_000, known)
    return {
        "customer": customer,
        "now": int(world.time_of(customer).timestamp()),
        "events": [{"id": row["event"], "type": row["type"], "happened": row["happened"]} for row in rows],
    }


def _target(world: StripeWorld, customer: str, subscription: str | None, wanted: dict[str, Any]) -> datetime:
    match wanted:
        case {"seconds": int(seconds)}:
            return world.time_of(customer) + timedelta(seconds=seconds)
        case {"to": int(instant)}:
            return datetime.fromtimestamp(instant, UTC)
        case {"to": "period_end" | "renewal" as to} if subscription:
            end = world.quietly(lambda ctx: life.renewal_of(ctx, subscription))
            return end + life.SETTLED if to == "renewal" else end
    raise ValueError("say seconds, or to: a time, last_retry or, with a subscription, renewal or period_end")


async def add_fault(request: Request) -> Response:
    """Let a request fail."""
    try:
        request.app.state.faults.add(await _body(request))
    except ValueError as error:
        return _refusal(str(error))
    return JSONResponse({"ok": True})


async def clear_faults(request: Request) -> Response:
    """Let all be well."""
    request.app.state.faults.clear()
    return JSONResponse({"ok": True})


async def _body(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(await request.body() or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _refusal(message: str) -> Response:
    return JSONResponse({"error": {"type": "invalid_request_error", "message": message}}, 400)


ROUTES = [
    Route("/_replica/faults", add_fault, methods=["POST"]),
    Route("/_replica/faults", clear_faults, methods=["DELETE"]),
    Route("/_replica/advance", advance, methods=["POST"]),
    Route("/_replica/webhooks", list_webhooks, methods=["GET"]),
    Route("/_replica/webhooks", set_mode, methods=["POST"]),
    Route("/_replica/webhooks/release", release, methods=["POST"]),
    Route("/_replica/webhooks/deliver", deliver, methods=["POST"]),
]
