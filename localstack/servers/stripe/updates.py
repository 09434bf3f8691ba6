"""What an update of a subscription lacks in the replica: a payment that fails undoes it, if that was asked for, and a
billing cycle that begins now is billed whole.
"""

from __future__ import annotations

from typing import Any

import seahaven_stripe_world.dispatch as dispatching
from seahaven.ctx import Ctx
from seahaven_stripe_world.billing import invoicing
from seahaven_stripe_world.billing import subscription_lifecycle as lifecycle
from seahaven_stripe_world.billing.proration import ProrationLine
from seahaven_stripe_world.dispatch.response import ApiResponse, Request
from seahaven_stripe_world.stripe_errors import StripeApiError

from servers.stripe import intents

Row = dict[str, Any]

_invoke = dispatching._invoke
_update = lifecycle.apply_update
_lines = lifecycle._proration_lines_for
_pay = intents.pay_with_intent

# One change runs at a time: the behavior that its request asks for, and the update that it is.
_now: Row = {"behavior": None, "update": None}


def _invoke_knowingly(ctx: Ctx, request: Request) -> Row | ApiResponse:
    before, _now["behavior"] = _now["behavior"], request.params.get("payment_behavior")
    try:
        return _invoke(ctx, request)
    finally:
        _now["behavior"] = before


def _update_knowingly(ctx: Ctx, name: str, params: Row) -> Row:
    before, _now["update"] = _now["update"], params
    try:
        return _update(ctx, name, params)
    finally:
        _now["update"] = before


def _pay_or_refuse(ctx: Ctx, invoice: str, **rest: Any) -> Row:
    """The outcome of an attempt; one that fails may undo the update that it is for."""
    outcome = _pay(ctx, invoice, **rest)
    if _now["update"] is None or _now["behavior"] != "error_if_incomplete" or outcome["outcome"] == "paid":
        return outcome
    if outcome["outcome"] == "no_payment_method":
        lifecycle._refuse_no_payment_method()
    if outcome["outcome"] == "requires_action":
        message = "Payment for this subscription requires additional user action."
        raise StripeApiError(402, "card_error", message, code="subscription_payment_intent_requires_action")
    error = outcome["error"]["error"]
    raise StripeApiError(
        402,
        "card_error",
        error["message"],
        code=error.get("code"),
        decline_code=error.get("decline_code"),
        charge=error.get("charge"),
    )


def _lines_of_whole_period(
    ctx: Ctx, subscription: Row, old: list[Row], new: list[Row], *, proration_date: str
) -> list[ProrationLine]:
    """The lines of a change: what is left of the old period, and all of one that begins with it."""
    lines = _lines(ctx, subscription, old, new, proration_date=proration_date)
    update = _now["update"] or {}
    if update.get("billing_cycle_anchor") != "now" or "items" not in update:
        return lines
    lifecycle._roll_periods_to(ctx, subscription["id"], proration_date)
    begun = lifecycle._items_of(ctx, subscription["id"])
    # Where there is no old period, an item is billed for its own.
    whole = _lines(ctx, subscription, [], begun, proration_date=proration_date)
    return [line for line in lines if line.amount < 0] + whole


dispatching._invoke = _invoke_knowingly
lifecycle.apply_update = _update_knowingly
lifecycle._proration_lines_for = _lines_of_whole_period
invoicing.pay_invoice = _pay_or_refuse
