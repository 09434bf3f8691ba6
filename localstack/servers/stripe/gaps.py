"""Fields that Stripe sends, a strict client requires and the replica leaves out."""

from __future__ import annotations

from typing import Any

HOSTED = "https://pay.stripe.com/"


def fill(value: Any, url: str = "") -> None:
    """Complete a reply or an event in place, however deep its objects lie."""
    if isinstance(value, list):
        for item in value:
            fill(item, url)
    elif isinstance(value, dict):
        if value.get("object") == "product":
            value.setdefault("type", "service")
        elif "radar_options" in value and value["radar_options"] is None:
            value["radar_options"] = {}
        elif value.get("object") == "subscription_item" and isinstance(value.get("price"), dict):
            value.setdefault("plan", plan_of(value["price"]))
        elif value.get("object") == "invoice" and url:
            for name in ("hosted_invoice_url", "invoice_pdf"):
                if value.get(name):
                    value[name] = value[name].replace(HOSTED, f"{url}/").rstrip("/")
        for item in value.values():
            fill(item, url)


def plan_of(price: dict) -> dict:
    """The older shape of a recurring price, which Stripe still sends beside it."""
    recurring = price.get("recurring") or {}
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price.get("unit_amount"),
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "interval": recurring.get("interval", "month"),
        "interval_count": recurring.get("interval_count", 1),
        "livemode": price["livemode"],
        "metadata": price["metadata"],
        "product": price["product"],
        "usage_type": recurring.get("usage_type", "licensed"),
    }
