"""What collects an invoice in the Stripe replica: its payment intent, which a client may complete."""

from typing import Any

from stripe_server import Replica


def invoice_of(stripe: Replica, subscription: dict[str, Any], *expand: str) -> dict[str, Any]:
    query = {f"expand[{place}]": name for place, name in enumerate(expand)}
    return stripe.get(f"/v1/invoices/{subscription['latest_invoice']}", **query)


def intent_of(stripe: Replica, subscription: dict[str, Any]) -> str:
    [payment] = invoice_of(stripe, subscription, "payments")["payments"]["data"]
    assert payment["is_default"] and payment["invoice"] == subscription["latest_invoice"]
    return payment["payment"]["payment_intent"]


def test_a_first_payment_waits_for_the_client(stripe: Replica):
    customer = stripe.customer(None)
    waiting = stripe.subscribe(customer, stripe.price(), payment_behavior="default_incomplete")
    assert waiting["status"] == "incomplete"
    intent = intent_of(stripe, waiting)
    secret = invoice_of(stripe, waiting, "confirmation_secret")["confirmation_secret"]["client_secret"]
    assert secret.startswith(f"{intent}_secret_")
    status, error = stripe.refused(f"/v1/payment_intents/{intent}/confirm", payment_method="pm_card_chargeDeclined")
    assert (status, error["decline_code"]) == (402, "generic_decline")
    assert stripe.get(f"/v1/subscriptions/{waiting['id']}")["status"] == "incomplete"
    paid = stripe.post(f"/v1/payment_intents/{intent}/confirm", payment_method="pm_card_visa")
    assert (paid["status"], paid["amount_received"], paid["last_payment_error"]) == ("succeeded", 2999, None)
    active = stripe.get(f"/v1/subscriptions/{waiting['id']}")
    assert active["status"] == "active"
    assert invoice_of(stripe, active)["status"] == "paid"
    # The card is kept: it pays the renewal.
    stripe.control("advance", subscription=active["id"], to="renewal")
    renewed = stripe.get(f"/v1/subscriptions/{waiting['id']}")
    assert renewed["status"] == "active"
    assert invoice_of(stripe, renewed)["status"] == "paid"
    assert intent_of(stripe, renewed) != intent


def test_a_client_can_wait_although_there_is_a_card(stripe: Replica):
    waiting = stripe.subscribe(stripe.customer(), stripe.price(), payment_behavior="default_incomplete")
    assert waiting["status"] == "incomplete"


def test_every_try_at_an_invoice_is_a_charge_of_its_intent(stripe: Replica):
    customer = stripe.customer()
    subscription = stripe.subscribe(customer, stripe.price())
    method = stripe.post("/v1/payment_methods/pm_card_chargeCustomerFail/attach", customer=customer)["id"]
    stripe.post(f"/v1/customers/{customer}", **{"invoice_settings[default_payment_method]": method})
    stripe.control("advance", subscription=subscription["id"], to="renewal")
    subscription = stripe.get(f"/v1/subscriptions/{subscription['id']}")
    intent = intent_of(stripe, subscription)
    failed = stripe.get(f"/v1/payment_intents/{intent}")
    assert failed["status"] == "requires_payment_method"
    [charge] = stripe.get("/v1/charges", payment_intent=intent)["data"]
    assert (charge["status"], charge["failure_code"]) == ("failed", "card_declined")
    assert failed["last_payment_error"]["charge"] == failed["latest_charge"] == charge["id"]
    stripe.post(
        f"/v1/invoices/{subscription['latest_invoice']}/pay",
        payment_method=stripe.post("/v1/payment_methods/pm_card_visa/attach", customer=customer)["id"],
    )
    charges = stripe.get("/v1/charges", payment_intent=intent)["data"]
    assert [charge["status"] for charge in charges] == ["succeeded", "failed"]
    refund = stripe.post("/v1/refunds", payment_intent=intent)
    assert (refund["amount"], refund["charge"]) == (2999, charges[0]["id"])
