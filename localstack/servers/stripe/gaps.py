"""Fields that Stripe sends, a strict client requires and the replica leaves out."""

from __future__ import annotations

from typing import Any


def fill(value: Any) -> None:
    """Complete a reply or an event in place, however deep its objects lie."""
    if isinstance(value, list):
        for item in value:
            fill(item)
    elif isinstance(value, dict):
        if value.get("object") == "product":
            value.setdefault("type", "service")
        elif value.get("object") == "subscription_item" and isinstance(value.get("price"), dict):
            value.setdefault("plan", plan_of(value["price"]))
        for item in value.values():
            fill(item)


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
