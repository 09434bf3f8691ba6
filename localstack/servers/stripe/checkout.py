"""Checkout sessions: made by the API, completed by a person on a local page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from seahaven.ctx import Ctx
from seahaven_stripe_world import _time
from seahaven_stripe_world.resources import events
from seahaven_stripe_world.stripe_errors import invalid_request

from servers.stripe import own
from servers.stripe.own import Object, Parameters

if TYPE_CHECKING:
    from servers.stripe.world import StripeWorld

KIND = "checkout.session"
MODES = ("payment", "setup", "subscription")
LIFE_SECONDS = 86_400
# What of `subscription_data` is the subscription's own.
SUBSCRIPTION_DATA = ("billing_mode", "metadata", "description", "trial_period_days", "trial_end", "trial_settings")
URL = re.compile(r"https?://[^\s]+")


def create(world: StripeWorld, ctx: Ctx, parameters: Parameters, _name: str) -> Object:
    """`POST /v1/checkout/sessions`."""
    mode = own.required(parameters, "mode")
    if mode not in MODES:
        raise invalid_request(f"Invalid mode: must be one of {', '.join(MODES)}", param="mode")
    for name in ("success_url", "cancel_url"):
        url = own.required(parameters, name) if name == "success_url" else parameters.get(name)
        if url and not URL.fullmatch(url):
            raise invalid_request("Not a valid URL", param=name, code="url_invalid")
    customer = parameters.get("customer")
    email = parameters.get("customer_email")
    if customer:
        email = world.call(ctx, "GET", f"/v1/customers/{customer}").get("email")
    lines = [] if mode == "setup" else _lines(world, ctx, parameters, mode)
    total = sum(line["amount_total"] for line in lines)
    now = _time.to_unix(ctx.clock.iso())
    name = own.new_id("cs_test_")
    session = {
        "id": name,
        "object": KIND,
        "adaptive_pricing": None,
        "after_expiration": None,
        "allow_promotion_codes": None,
        "amount_subtotal": total if lines else None,
        "amount_total": total if lines else None,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "billing_address_collection": None,
        "cancel_url": parameters.get("cancel_url"),
        "client_reference_id": parameters.get("client_reference_id"),
        "client_secret": None,
        "collected_information": None,
        "consent": None,
        "consent_collection": None,
        "created": now,
        "currency": lines[0]["currency"] if lines else parameters.get("currency"),
        "currency_conversion": None,
        "custom_fields": [],
        "custom_text": {
            "after_submit": None,
            "shipping_address": None,
            "submit": None,
            "terms_of_service_acceptance": None,
        },
        "customer": customer,
        "customer_account": None,
        "customer_creation": None if customer else "always",
        "customer_details": {"email": email, "name": None} if email else None,
        "customer_email": parameters.get("customer_email"),
        "discounts": [],
        "expires_at": int(parameters.get("expires_at", now + LIFE_SECONDS)),
        "invoice": None,
        "invoice_creation": None,
        "livemode": False,
        "locale": None,
        "metadata": dict(parameters.get("metadata") or {}),
        "mode": mode,
        "payment_intent": None,
        "payment_link": None,
        "payment_method_collection": "always" if mode == "subscription" else None,
        "payment_method_options": {},
        # What the dashboard switches on, unless the caller chooses.
        "payment_method_types": own.items(parameters.get("payment_method_types")) or ["card", "link"],
        "payment_status": "no_payment_required" if mode == "setup" else "unpaid",
        "permissions": None,
        "phone_number_collection": {"enabled": False},
        "recovered_from": None,
        "saved_payment_method_options": None,
        "setup_intent": None,
        "shipping_address_collection": None,
        "shipping_cost": None,
        "shipping_options": [],
        "status": "open",
        "submit_type": None,
        "subscription": None,
        "success_url": parameters["success_url"],
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0} if lines else None,
        "ui_mode": "hosted_page",
        "url": f"{world.url}/checkout/{name}",
        "wallet_options": None,
        # What only the page needs; it is not sent.
        "_lines": lines,
        "_data": {kind: parameters.get(f"{kind}_data") or {} for kind in ("subscription", "payment_intent")},
    }
    return _public(own.save(ctx, session))


def retrieve(_world: StripeWorld, ctx: Ctx, parameters: Parameters, name: str) -> Object:
    """`GET /v1/checkout/sessions/{id}`."""
    session = own.load(ctx, KIND, name)
    found = _public(session)
    if any(str(field).split(".")[0] == "line_items" for field in own.items(parameters.get("expand"))):
        found["line_items"] = _list(session["_lines"], f"/v1/checkout/sessions/{name}/line_items")
    return found


def list_all(_world: StripeWorld, ctx: Ctx, parameters: Parameters, _name: str) -> Object:
    """`GET /v1/checkout/sessions`."""
    found = own.newest(ctx, KIND)
    for field in ("customer", "status", "subscription", "payment_intent"):
        if field in parameters:
            found = [session for session in found if session[field] == parameters[field]]
    if after := parameters.get("starting_after"):
        ids = [session["id"] for session in found]
        found = found[ids.index(after) + 1 :] if after in ids else []
    limit = int(parameters.get("limit", 10))
    page = _list([_public(session) for session in found[:limit]], "/v1/checkout/sessions")
    page["has_more"] = len(found) > limit
    return page


def line_items(_world: StripeWorld, ctx: Ctx, _parameters: Parameters, name: str) -> Object:
    """`GET /v1/checkout/sessions/{id}/line_items`."""
    return _list(own.load(ctx, KIND, name)["_lines"], f"/v1/checkout/sessions/{name}/line_items")


def expire(_world: StripeWorld, ctx: Ctx, _parameters: Parameters, name: str) -> Object:
    """`POST /v1/checkout/sessions/{id}/expire`."""
    session = own.load(ctx, KIND, name)
    if session["status"] != "open":
        raise invalid_request('Only Checkout Sessions with a status in ["open"] can be expired.')
    return _public(_end(ctx, session, "expired"))


def expire_due(world: StripeWorld) -> None:
    """End the sessions whose day is over."""

    def look(ctx: Ctx) -> None:
        now = _time.to_unix(ctx.clock.iso())
        for session in own.newest(ctx, KIND):
            if session["status"] == "open" and session["expires_at"] <= now:
                ctx.state["_request"] = {}
                _end(ctx, session, "expired")

    world.run(look)


def complete(world: StripeWorld, ctx: Ctx, name: str, card: str, email: str) -> Object:
    """Pay with a card; `Refused` when it is declined, and then nothing is changed."""
    session = own.load(ctx, KIND, name)
    with ctx.db.transaction():
        if not session["customer"]:
            session["customer"] = world.call(ctx, "POST", "/v1/customers", {"email": email})["id"]
            session["customer_details"] = {"email": email, "name": None}
        customer = session["customer"]
        method = world.call(ctx, "POST", f"/v1/payment_methods/{card}/attach", {"customer": customer})["id"]
        if session["mode"] == "subscription":
            _subscribe(world, ctx, session, method)
        elif session["mode"] == "payment":
            _pay(world, ctx, session, method)
        else:
            form = {"customer": customer, "payment_method": method, "confirm": True, "payment_method_types": ["card"]}
            session["setup_intent"] = world.call(ctx, "POST", "/v1/setup_intents", form)["id"]
        return _public(_end(ctx, session, "complete"))


def _subscribe(world: StripeWorld, ctx: Ctx, session: Object, method: str) -> None:
    data = session["_data"]["subscription"]
    form = {
        "customer": session["customer"],
        "items": [{"price": line["price"]["id"], "quantity": line["quantity"]} for line in session["_lines"]],
        "default_payment_method": method,
        "payment_behavior": "error_if_incomplete",
        **{key: data[key] for key in SUBSCRIPTION_DATA if key in data},
    }
    made = world.call(ctx, "POST", "/v1/subscriptions", form)
    session |= {"subscription": made["id"], "invoice": made["latest_invoice"]}
    session["payment_status"] = "no_payment_required" if made["status"] == "trialing" else "paid"


def _pay(world: StripeWorld, ctx: Ctx, session: Object, method: str) -> None:
    data = session["_data"]["payment_intent"]
    form = {
        "amount": session["amount_total"],
        "currency": session["currency"],
        "customer": session["customer"],
        "payment_method": method,
        "payment_method_types": ["card"],
        "confirm": True,
        **{key: data[key] for key in ("metadata", "description") if key in data},
    }
    session["payment_intent"] = world.call(ctx, "POST", "/v1/payment_intents", form)["id"]
    session["payment_status"] = "paid"


def _end(ctx: Ctx, session: Object, status: str) -> Object:
    session |= {"status": status, "url": None}
    kind = "checkout.session.completed" if status == "complete" else "checkout.session.expired"
    events.emit_event(ctx, type=kind, obj=_public(session))
    return own.save(ctx, session)


def _lines(world: StripeWorld, ctx: Ctx, parameters: Parameters, mode: str) -> list[Object]:
    lines = []
    for index, item in enumerate(own.items(own.required(parameters, "line_items"))):
        price = _price(world, ctx, item, f"line_items[{index}]")
        if mode == "subscription" and not price["recurring"]:
            raise invalid_request(
                "You must provide at least one recurring price in `subscription` mode when using prices."
            )
        if mode == "payment" and price["recurring"]:
            raise invalid_request("You specified `payment` mode but passed a recurring price.")
        quantity = int(item.get("quantity", 1))
        amount = quantity * price["unit_amount"]
        product = world.call(ctx, "GET", f"/v1/products/{price['product']}")
        lines.append(
            {
                "id": own.new_id("li_"),
                "object": "item",
                "amount_discount": 0,
                "amount_subtotal": amount,
                "amount_tax": 0,
                "amount_total": amount,
                "currency": price["currency"],
                "description": product["name"],
                "metadata": {},
                "price": price,
                "quantity": quantity,
            }
        )
    return lines


def _price(world: StripeWorld, ctx: Ctx, item: dict[str, Any], name: str) -> Object:
    if item.get("price"):
        return world.call(ctx, "GET", f"/v1/prices/{item['price']}")
    if item.get("price_data"):
        return world.call(ctx, "POST", "/v1/prices", dict(item["price_data"]))
    raise invalid_request(f"Missing required param: {name}[price].", param=f"{name}[price]", code="parameter_missing")


def _public(session: Object) -> Object:
    return {key: value for key, value in session.items() if not key.startswith("_")}


def _list(data: list[Object], url: str) -> Object:
    return {"object": "list", "data": data, "has_more": False, "url": url}


ROUTES = [
    own.OwnRoute("POST", re.compile("/v1/checkout/sessions"), create),
    own.OwnRoute("GET", re.compile("/v1/checkout/sessions"), list_all),
    own.OwnRoute("GET", re.compile("/v1/checkout/sessions/([^/]+)"), retrieve),
    own.OwnRoute("GET", re.compile("/v1/checkout/sessions/([^/]+)/line_items"), line_items),
    own.OwnRoute("POST", re.compile("/v1/checkout/sessions/([^/]+)/expire"), expire),
]
