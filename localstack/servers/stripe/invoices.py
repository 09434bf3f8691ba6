"""What the replica lacks of invoices: payment by a method of the caller's choice, and voiding what was given up."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from seahaven.ctx import Ctx
from seahaven_stripe_world.billing import invoicing
from seahaven_stripe_world.dispatch.response import ApiResponse, Request
from seahaven_stripe_world.resources import _lookup
from seahaven_stripe_world.resources import invoices as resource
from seahaven_stripe_world.stripe_errors import invalid_request

from servers.stripe import own
from servers.stripe.own import Object, Parameters

if TYPE_CHECKING:
    from servers.stripe.world import StripeWorld

_require_voidable = resource._require_voidable


def pay(world: StripeWorld, ctx: Ctx, parameters: Parameters, name: str) -> Object | ApiResponse:
    """`POST /v1/invoices/{id}/pay`; a declined card leaves its trace, as with Stripe."""
    path = f"/v1/invoices/{name}"
    invoice = world.call(ctx, "GET", path)
    if invoice["status"] == "paid":
        raise invalid_request("Invoice is already paid")
    if invoice["status"] == "draft":
        invoice = world.call(ctx, "POST", f"{path}/finalize")
    if invoice["status"] == "open":
        outcome = _attempt(ctx, name, parameters)
        if outcome["outcome"] == "failed":
            return ApiResponse(402, outcome["error"])
        if outcome["outcome"] == "requires_action":
            message = "This payment requires additional user action before it can be completed successfully."
            error = {"type": "card_error", "code": "invoice_payment_intent_requires_action", "message": message}
            return ApiResponse(402, {"error": error})
        if outcome["outcome"] == "no_payment_method":
            raise invalid_request("There is no default_payment_method set on this Customer or Invoice.")
    elif invoice["status"] != "paid":
        raise invalid_request("You can only pass in open invoices. This invoice isn't open.")
    return world.call(ctx, "GET", path)


def _attempt(ctx: Ctx, name: str, parameters: Parameters) -> Object:
    row = invoicing._re_read(ctx, name)
    if str(parameters.get("paid_out_of_band")).lower() == "true":
        return invoicing._mark_paid(ctx, row, out_of_band=True)
    method = parameters.get("payment_method")
    chosen = method and _lookup.require_live_row(
        ctx, "payment_methods", "PaymentMethod", method, param="payment_method"
    )
    subscription = ctx.db.one("SELECT * FROM subscriptions WHERE id = ?", row["parent_subscription"])
    return invoicing.pay_invoice(ctx, name, sub_row=subscription, pm_row=chosen or None)


def _voidable(ctx: Ctx, request: Request, **rest: Any) -> Object:
    """What is uncollectible may be voided like what is open."""
    sql = "UPDATE invoices SET status = 'open' WHERE id = ? AND status = 'uncollectible'"
    ctx.db.execute(sql, request.path_params["invoice"])
    return _require_voidable(ctx, request, **rest)


resource._require_voidable = _voidable

ROUTES = [own.OwnRoute("POST", re.compile("/v1/invoices/([^/]+)/pay"), pay)]
