"""The replica's objects, as replies and in webhooks, against Stripe's published OpenAPI description."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from stripe_server import Replica, eventually

TOOLS = Path(__file__).resolve().parents[2] / ".local" / "tools"
SPEC = TOOLS / "stripe-world" / "seahaven_stripe_world" / "spec" / "spec3.json"

# Stripe sends it beside the price, as ever; its description tells of the price alone.
UNDESCRIBED = "('plan' was unexpected)"


def strict(schema: Any) -> Any:
    """JSON Schema of OpenAPI's: what may be null, and no field that the description does not know."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if made.pop("nullable", False) is True:
        return {"anyOf": [made, {"type": "null"}]}
    return made


@cache
def validators() -> dict[str, Draft202012Validator]:
    schemas = {name: strict(schema) for name, schema in json.loads(SPEC.read_text())["components"]["schemas"].items()}
    document = {"components": {"schemas": schemas}}
    registry = Registry().with_resource("urn:stripe", Resource.opaque(document))
    return {
        name: Draft202012Validator({"$ref": f"urn:stripe#/components/schemas/{name}"}, registry=registry)
        for name in schemas
    }


def differences(value: Any, kind: str | None = None) -> list[str]:
    """What an object, and every object in it that may be expanded, has other than Stripe's."""
    found = []
    if isinstance(value, list):
        return [line for item in value for line in differences(item)]
    if not isinstance(value, dict):
        return []
    kind = kind or value.get("object")
    if kind in validators():
        for error in validators()[kind].iter_errors(value):
            place = "/".join(str(step) for step in error.absolute_path)
            # Of alternatives the one is told that the value comes nearest to.
            nearest = min(error.context, key=lambda inner: -len(inner.absolute_path), default=error)
            found.append(f"{kind}/{place}: {nearest.message[:300]}")
    return [line for line in found if not line.endswith(UNDESCRIBED)]


def test_objects_are_as_stripe_describes_them(stripe: Replica):
    customer = stripe.customer()
    price = stripe.price()
    subscription = stripe.subscribe(customer, price)
    stripe.control("advance", subscription=subscription["id"], to="renewal")
    method = stripe.post("/v1/payment_methods/pm_card_chargeCustomerFail/attach", customer=customer)["id"]
    stripe.post(f"/v1/customers/{customer}", **{"invoice_settings[default_payment_method]": method})
    stripe.control("advance", subscription=subscription["id"], to="renewal")
    waiting = stripe.subscribe(stripe.customer(None), price, payment_behavior="default_incomplete")
    intent = stripe.post("/v1/payment_intents", amount=1999, currency="usd", customer=customer)
    stripe.refused(f"/v1/payment_intents/{intent['id']}/confirm", payment_method="pm_card_chargeDeclined")
    stripe.post(f"/v1/payment_intents/{intent['id']}/confirm", payment_method="pm_card_visa")
    refund = stripe.post("/v1/refunds", payment_intent=intent["id"])
    session = stripe.post(
        "/v1/checkout/sessions",
        mode="subscription",
        customer=customer,
        success_url="http://localhost/",
        **{"line_items[0][price]": price, "line_items[0][quantity]": 1},
    )
    page = stripe.post("/v1/billing_portal/sessions", customer=customer, return_url="http://localhost/")

    objects = [refund, session, page, stripe.get(f"/v1/customers/{customer}")]
    for one in (subscription, waiting):
        path = f"/v1/subscriptions/{one['id']}"
        objects.append(stripe.get(path))
        expanded = {"expand[0]": "latest_invoice.payments", "expand[1]": "latest_invoice.confirmation_secret"}
        objects.append(stripe.get(path, **expanded))
    for kind in ("subscriptions", "invoices", "payment_intents", "charges"):
        objects += stripe.get(f"/v1/{kind}", customer=customer, limit=100)["data"]
    objects += stripe.get("/v1/prices", limit=100)["data"]
    events = eventually(lambda: stripe.get("/_replica/webhooks", customer=customer)["data"])
    objects += [event["payload"] for event in events]
    objects += [event["payload"]["data"]["object"] for event in events]
    kinds = {found["object"] for found in objects}
    assert {"subscription", "invoice", "payment_intent", "charge", "refund", "event", "checkout.session"} <= kinds
    different = sorted({line for found in objects for line in differences(found)})
    assert not different, "\n".join(different)


def test_a_difference_is_noticed():
    price = {"id": "price_1", "object": "price", "active": "yes", "surprise": 1}
    found = "\n".join(differences(price))
    assert "'currency' is a required property" in found and "'surprise'" in found and "active" in found
