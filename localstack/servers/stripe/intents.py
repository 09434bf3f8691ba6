"""The payment intent behind each invoice, which the replica lacks: Stripe collects an invoice by one.

It is made when the invoice is finalised; each attempt to collect is a charge of
it, and a client may complete it by its secret, which pays the invoice. A
subscription that asks for `default_incomplete` waits for just that.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from seahaven.ctx import Ctx
from seahaven_stripe_world import _json, _time
from seahaven_stripe_world.billing import invoicing
from seahaven_stripe_world.billing import subscription_lifecycle as lifecycle
from seahaven_stripe_world.dispatch.response import ApiResponse
from seahaven_stripe_world.resources import charges, events, payment_intents

TABLE = """
CREATE TABLE IF NOT EXISTS replica_invoice_intents (
    invoice TEXT PRIMARY KEY, intent TEXT NOT NULL UNIQUE
) STRICT;
"""

Row = dict[str, Any]

_finalize = invoicing.finalize_invoice
_pay = invoicing.pay_invoice
_void = invoicing.void_invoice
_insert_charge = charges.insert_charge
_confirm = payment_intents._confirm
_create = lifecycle.create_subscription
_charge_first = lifecycle._charge_first_invoice
_refuse = lifecycle._refuse_no_payment_method

# One change runs at a time: what it collects for, and what it makes.
_now: Row = {"intent": None, "behavior": None}


def of_invoice(ctx: Ctx, invoice: str) -> Row | None:
    """The intent that collects an invoice."""
    sql = "SELECT p.* FROM payment_intents p JOIN replica_invoice_intents i ON i.intent = p.id WHERE i.invoice = ?"
    return ctx.db.one(sql, invoice)


def complete(ctx: Ctx, value: Any, wanted: str) -> None:
    """Add to the invoices of a reply what the request asked to be expanded, however deep they lie."""
    if isinstance(value, list):
        for item in value:
            complete(ctx, item, wanted)
    elif isinstance(value, dict):
        intent = of_invoice(ctx, value["id"]) if value.get("object") == "invoice" else None
        if intent and "confirmation_secret" in wanted and value["status"] == "open":
            value["confirmation_secret"] = {"client_secret": intent["client_secret"], "type": "payment_intent"}
        if value.get("object") == "invoice" and "payments" in wanted:
            data = [_payment(value, intent)] if intent else []
            url = f"/v1/invoice_payments?invoice={value['id']}"
            value["payments"] = {"object": "list", "data": data, "has_more": False, "url": url}
        for item in value.values():
            complete(ctx, item, wanted)


def _payment(invoice: Row, intent: Row) -> Row:
    status = {"succeeded": "paid", "canceled": "canceled"}.get(intent["status"], "open")
    return {
        "id": intent["id"].replace("pi_", "inpay_", 1),
        "object": "invoice_payment",
        "amount_paid": intent["amount_received"] if status == "paid" else None,
        "amount_requested": intent["amount"],
        "created": _time.to_unix(intent["created"]),
        "currency": intent["currency"],
        "invoice": invoice["id"],
        "is_default": True,
        "livemode": False,
        "payment": {"payment_intent": intent["id"], "type": "payment_intent"},
        "status": status,
        "status_transitions": {
            "canceled_at": None,
            "paid_at": invoice["status_transitions"]["paid_at"] if status == "paid" else None,
        },
    }


def _finalize_with_intent(ctx: Ctx, invoice_id: str) -> Row:
    row = _finalize(ctx, invoice_id)
    if row["amount_due"] >= invoicing.MINIMUM_CHARGEABLE:
        wanted = {"amount": row["amount_due"], "currency": row["currency"], "customer": row["customer"]}
        made = payment_intents.create(ctx, SimpleNamespace(params=wanted, metadata=None))
        ctx.db.execute("INSERT INTO replica_invoice_intents VALUES (?, ?)", invoice_id, made["id"])
    return row


def _void_with_intent(ctx: Ctx, invoice_id: str) -> Row:
    row = _void(ctx, invoice_id)
    intent = of_invoice(ctx, invoice_id)
    if intent and intent["status"] != "canceled":
        wanted = {"cancellation_reason": "void_invoice"}
        payment_intents.cancel(ctx, SimpleNamespace(path_params={"intent": intent["id"]}, params=wanted))
    return row


def pay_with_intent(ctx: Ctx, invoice_id: str, *, sub_row: Row | None = None, pm_row: Row | None = None) -> Row:
    """One attempt to collect an invoice, by its intent."""
    intent = of_invoice(ctx, invoice_id)
    if intent is None:
        return _pay(ctx, invoice_id, sub_row=sub_row, pm_row=pm_row)
    method = pm_row or invoicing._resolve_pm(ctx, invoicing._re_read(ctx, invoice_id), sub_row)
    before, _now["intent"] = _now["intent"], intent["id"]
    try:
        outcome = _pay(ctx, invoice_id, sub_row=sub_row, pm_row=pm_row)
    finally:
        _now["intent"] = before
    if method:
        _follow(ctx, intent["id"], method, outcome)
    return outcome


def _follow(ctx: Ctx, intent: str, method: Row, outcome: Row) -> None:
    """The intent becomes what the attempt at its invoice came to."""
    sql = "SELECT * FROM charges WHERE payment_intent = ? ORDER BY x_seq DESC LIMIT 1"
    charge = ctx.db.one(sql, intent) or {"id": None}
    if outcome["outcome"] == "paid":
        kind, sets = "succeeded", {"status": "succeeded", "payment_method": method["id"], "next_action": None}
        sets["last_payment_error"] = None
        sets["amount_received"] = payment_intents._re_read(ctx, intent)["amount"]
    elif outcome["outcome"] == "failed":
        told = outcome["error"]["error"]
        error = payment_intents._last_payment_error(
            code=told["code"],
            decline_code=told.get("decline_code"),
            message=told["message"],
            charge=charge["id"],
            pm_body=payment_intents._payment_method_body(ctx, method),
        )
        kind, sets = "payment_failed", {"status": "requires_payment_method", "last_payment_error": _json.dumps(error)}
    elif outcome["outcome"] == "requires_action":
        action = _json.dumps({"type": "use_stripe_sdk", "use_stripe_sdk": {}})
        kind, sets = "requires_action", {"status": "requires_action", "next_action": action}
    else:
        return
    sets["latest_charge"] = charge["id"]
    names = ", ".join(f"{name} = ?" for name in sets)
    ctx.db.execute(f"UPDATE payment_intents SET {names} WHERE id = ?", *sets.values(), intent)
    body = payment_intents.serialize(ctx, payment_intents._re_read(ctx, intent))
    events.emit_event(ctx, type=f"payment_intent.{kind}", obj=body)


def _charge_of_intent(ctx: Ctx, **charge: Any) -> Row:
    charge["payment_intent"] = charge["payment_intent"] or _now["intent"]
    return _insert_charge(ctx, **charge)


def _confirm_or_pay(ctx: Ctx, row: Row, parameters: Any) -> Row | ApiResponse:
    """A client that completes an invoice's intent pays the invoice, and keeps the card for its subscription."""
    found = ctx.db.one("SELECT invoice FROM replica_invoice_intents WHERE intent = ?", row["id"])
    invoice = found and invoicing._re_read(ctx, found["invoice"])
    method = payment_intents._resolve_payment_method(ctx, row, parameters)
    if not invoice or invoice["status"] != "open" or method is None:
        return _confirm(ctx, row, parameters)
    subscription = ctx.db.one("SELECT * FROM subscriptions WHERE id = ?", invoice["parent_subscription"])
    outcome = invoicing.pay_invoice(ctx, invoice["id"], sub_row=subscription, pm_row=method)
    if outcome["outcome"] == "failed":
        return ApiResponse(402, outcome["error"])
    if outcome["outcome"] == "paid":
        ctx.db.execute("UPDATE payment_methods SET customer = ? WHERE id = ?", row["customer"], method["id"])
        if subscription and not subscription["default_payment_method"]:
            sql = "UPDATE subscriptions SET default_payment_method = ? WHERE id = ?"
            ctx.db.execute(sql, method["id"], subscription["id"])
    return payment_intents.serialize(ctx, payment_intents._re_read(ctx, row["id"]))


def _create_or_wait(ctx: Ctx, params: Row) -> Row:
    before, _now["behavior"] = _now["behavior"], params.get("payment_behavior")
    try:
        return _create(ctx, params)
    finally:
        _now["behavior"] = before


def _needs_method() -> None:
    if _now["behavior"] != "default_incomplete":
        _refuse()


def _charge_or_wait(ctx: Ctx, sub_row: Row, **rest: Any) -> None:
    if rest["payment_behavior"] != "default_incomplete":
        _charge_first(ctx, sub_row, **rest)
        return
    invoice = lifecycle._cycle_invoice(
        ctx,
        sub_row,
        billing_reason="subscription_create",
        auto_advance=False,
        finalize=True,
        discount_specs=rest["discount_specs"],
        tax_specs=rest["tax_specs"],
    )
    lifecycle._set_latest_invoice(ctx, sub_row["id"], invoice["id"])
    if invoice["amount_due"] == 0:
        invoicing.pay_invoice(ctx, invoice["id"], sub_row=sub_row)
    else:
        lifecycle._set_status(ctx, sub_row["id"], "incomplete")


invoicing.finalize_invoice = _finalize_with_intent
invoicing.pay_invoice = pay_with_intent
invoicing.void_invoice = _void_with_intent
charges.insert_charge = _charge_of_intent
payment_intents._confirm = _confirm_or_pay
lifecycle.create_subscription = _create_or_wait
lifecycle._charge_first_invoice = _charge_or_wait
lifecycle._refuse_no_payment_method = _needs_method
