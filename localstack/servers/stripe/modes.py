"""The billing mode of a subscription, which the replica does not take: flexible, unless classic is asked for.

The replica reckons in the classic way, whichever is asked for.
"""

from __future__ import annotations

from typing import Any

from seahaven.ctx import Ctx
from seahaven_stripe_world.billing import subscription_lifecycle as lifecycle
from seahaven_stripe_world.dispatch.params import Param
from seahaven_stripe_world.resources import subscriptions

Row = dict[str, Any]

_TYPE = Param(name="type", kind="literal", choices=("classic", "flexible"), required=True)
_PARAMETER = Param(name="billing_mode", kind="object", shape=(_TYPE,))

_create = lifecycle.create_subscription
_insert = lifecycle._insert_row

# One change runs at a time: the mode of the subscription that it makes.
_now: Row = {"mode": "flexible"}


def _create_in_mode(ctx: Ctx, params: Row) -> Row:
    before, _now["mode"] = _now["mode"], (params.get("billing_mode") or {}).get("type", "flexible")
    try:
        return _create(ctx, params)
    finally:
        _now["mode"] = before


def _insert_in_mode(ctx: Ctx, table: str, columns: Row) -> None:
    mode = {"billing_mode": _now["mode"]} if table == "subscriptions" else {}
    _insert(ctx, table, {**columns, **mode})


# The specification is frozen, and the routes refer to it.
object.__setattr__(subscriptions.SUB_CREATE, "body", (*subscriptions.SUB_CREATE.body, _PARAMETER))
lifecycle.create_subscription = _create_in_mode
lifecycle._insert_row = _insert_in_mode
