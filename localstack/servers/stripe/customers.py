"""What the replica lacks when a customer is deleted: their subscriptions end at once."""

from __future__ import annotations

from typing import Any

from seahaven.ctx import Ctx
from seahaven_stripe_world.billing import subscription_lifecycle as lifecycle
from seahaven_stripe_world.resources import customers


def _end_subscriptions(ctx: Ctx, customer: dict[str, Any]) -> None:
    sql = "SELECT id FROM subscriptions WHERE customer = ? AND status NOT IN ('canceled', 'incomplete_expired')"
    for row in ctx.db.rows(sql, customer["id"]):
        lifecycle.cancel_subscription(ctx, row["id"])


# The specification is frozen, and the routes refer to it.
object.__setattr__(customers.SPEC.delete, "guard", _end_subscriptions)
