"""Billing portal sessions: made by the API, used by a person on a local page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from seahaven.ctx import Ctx
from seahaven_stripe_world import _time
from seahaven_stripe_world.resources import events

from servers.stripe import own
from servers.stripe.own import Object, Parameters

if TYPE_CHECKING:
    from servers.stripe.world import StripeWorld

KIND = "billing_portal.session"


def create(world: StripeWorld, ctx: Ctx, parameters: Parameters, _name: str) -> Object:
    """`POST /v1/billing_portal/sessions`."""
    customer = own.required(parameters, "customer")
    world.call(ctx, "GET", f"/v1/customers/{customer}")
    name = own.new_id("bps_")
    session = {
        "id": name,
        "object": KIND,
        "configuration": "bpc_local",
        "created": _time.to_unix(ctx.clock.iso()),
        "customer": customer,
        "customer_account": None,
        "flow": None,
        "livemode": False,
        "locale": None,
        "on_behalf_of": None,
        "return_url": parameters.get("return_url"),
        "url": f"{world.url}/portal/{name}",
    }
    events.emit_event(ctx, type="billing_portal.session.created", obj=session)
    return own.save(ctx, session)


def act(world: StripeWorld, ctx: Ctx, customer: str, form: dict[str, str]) -> None:
    """What the person asked for; `Refused` when it cannot be."""
    match form:
        case {"do": "card", "card": card}:
            method = world.call(ctx, "POST", f"/v1/payment_methods/{card}/attach", {"customer": customer})["id"]
            default = {"invoice_settings": {"default_payment_method": method}}
            world.call(ctx, "POST", f"/v1/customers/{customer}", default)
            for subscription in running(world, ctx, customer):
                if subscription["default_payment_method"]:
                    path = f"/v1/subscriptions/{subscription['id']}"
                    world.call(ctx, "POST", path, {"default_payment_method": method})
        case {"do": "cancel" | "resume" as do, "subscription": name} if _owns(world, ctx, customer, name):
            # As of the real portal's cancellations, only the date tells of it.
            end = period_end(world.call(ctx, "GET", f"/v1/subscriptions/{name}")) if do == "cancel" else ""
            world.call(ctx, "POST", f"/v1/subscriptions/{name}", {"cancel_at": end})
        case {"do": "switch", "subscription": name, "price": price} if _owns(world, ctx, customer, name):
            item = world.call(ctx, "GET", f"/v1/subscriptions/{name}")["items"]["data"][0]
            change = {"items": [{"id": item["id"], "price": price}], "proration_behavior": "always_invoice"}
            world.call(ctx, "POST", f"/v1/subscriptions/{name}", change)


def running(world: StripeWorld, ctx: Ctx, customer: str) -> list[Object]:
    """The customer's subscriptions that are not over."""
    return world.call(ctx, "GET", "/v1/subscriptions", {"customer": customer, "limit": 100})["data"]


def period_end(subscription: Object) -> int:
    """When the subscription's period ends."""
    return subscription["items"]["data"][0]["current_period_end"]


def _owns(world: StripeWorld, ctx: Ctx, customer: str, subscription: str) -> bool:
    return any(row["id"] == subscription for row in running(world, ctx, customer))


ROUTES = [own.OwnRoute("POST", re.compile("/v1/billing_portal/sessions"), create)]
