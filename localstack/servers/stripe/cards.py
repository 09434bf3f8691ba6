"""Stripe's documented test cards: `pm_card_visa` and the others, wherever a payment method is named.

Stripe makes a new payment method of such a name each time that a request uses
it. So does this; a retry with the same idempotency key means the same one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from seahaven.ctx import Ctx
from seahaven.http.messages import HttpRequest, HttpResponse
from seahaven_stripe_world.billing import magic_cards
from seahaven_stripe_world.http_api import wire
from seahaven_stripe_world.resources import payment_intents
from seahaven_stripe_world.stripe_errors import invalid_request

# Names that the replica does not know, by the card number behind them.
ADDED = {
    "card_mastercard_debit": "5200828282828210",
    "card_mastercard_prepaid": "5105105105105100",
    "card_chargeDeclined": "4000000000000002",
    "card_chargeDeclinedInsufficientFunds": "4000000000009995",
    "card_chargeDeclinedLostCard": "4000000000009987",
    "card_chargeDeclinedStolenCard": "4000000000009979",
    "card_visa_chargeDeclinedExpiredCard": "4000000000000069",
    "card_visa_chargeDeclinedIncorrectCvc": "4000000000000127",
    "card_visa_chargeDeclinedProcessingError": "4000000000000119",
    "card_chargeDeclinedVelocityLimitExceeded": "4000000000006975",
    "card_chargeCustomerFail": "4000000000000341",
    "card_threeDSecureRequired": "4000000000003063",
}
magic_cards._TOKENS.update({f"pm_{name}": number for name, number in ADDED.items()})
magic_cards._TOKENS.update({name.replace("card_", "tok_", 1): number for name, number in ADDED.items()})

NAME = re.compile(r"\bpm_card_[A-Za-z0-9_]+")
ATTACH = re.compile(r"/v1/payment_methods/(pm_[A-Za-z0-9]+)/attach")


def with_real_methods(ctx: Ctx, request: HttpRequest, ask: Callable[[HttpRequest], HttpResponse]) -> HttpRequest:
    """The request, naming payment methods that exist in place of test cards."""
    if request.path == "/v1/payment_methods":
        return request  # there the name may stand for the card itself

    body = request.body.decode("utf-8", "surrogateescape")
    names = {name for part in (request.path, request.query, body) for name in NAME.findall(part)}
    found = {name: _method(ctx, request, name, ask) for name in names if name in magic_cards._TOKENS}

    def put(text: str) -> str:
        return NAME.sub(lambda match: found.get(match[0], match[0]), text)

    if not found:
        return request
    return replace(
        request,
        path=put(request.path),
        query=put(request.query),
        body=put(body).encode("utf-8", "surrogateescape"),
    )


def check_owner(ctx: Ctx, request: HttpRequest) -> None:
    """A customer's payment method is attached to no other one; the replica would hand it over."""
    attach = ATTACH.fullmatch(request.path)
    row = attach and ctx.db.one("SELECT customer FROM payment_methods WHERE id = ?", attach[1])
    if row and row["customer"] not in (None, wire.decode(request).raw().get("customer")):
        raise invalid_request("The payment method you provided has already been attached to a customer.")


def explain_refusal(ctx: Ctx, request: HttpRequest, status: int, body: dict[str, Any]) -> None:
    """Give a refused attachment the card's own reason; the replica knows one for all."""
    attach = ATTACH.fullmatch(request.path)
    if status != 402 or not attach:
        return
    row = ctx.db.one("SELECT x_behavior FROM payment_methods WHERE id = ?", attach[1])
    if row is None:
        return
    tags = payment_intents._behavior_tags(row)
    code, decline_code = tags["charge_declined"], tags.get("decline_code")
    body["error"] |= {"code": code, "message": payment_intents._DECLINE_MESSAGES[code, decline_code]}
    if decline_code:
        body["error"]["decline_code"] = decline_code
    else:
        body["error"].pop("decline_code", None)


def _method(ctx: Ctx, request: HttpRequest, name: str, ask: Callable[[HttpRequest], HttpResponse]) -> str:
    key = request.header("idempotency-key")
    known = key and ctx.db.one("SELECT payment_method FROM replica_cards WHERE key = ? AND name = ?", key, name)
    if known:
        return known["payment_method"]
    body = urlencode({"type": "card", "card[token]": name}).encode()
    headers = tuple(pair for pair in request.headers if pair[0] != "idempotency-key")
    made = ask(HttpRequest("POST", "/v1/payment_methods", "", headers, body))
    method = json.loads(made.body_bytes).get("id", name)
    if key and method != name:
        ctx.db.execute("INSERT INTO replica_cards VALUES (?, ?, ?)", key, name, method)
    return method
