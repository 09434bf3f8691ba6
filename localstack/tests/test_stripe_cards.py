"""Stripe's test cards, over HTTP."""

import pytest
from stripe_server import Replica

PI = {"amount": 2000, "currency": "usd", "confirm": "true", "automatic_payment_methods[enabled]": "true",
      "automatic_payment_methods[allow_redirects]": "never"}  # fmt: skip

DECLINES = {
    "pm_card_chargeDeclined": ("card_declined", "generic_decline"),
    "pm_card_visa_chargeDeclined": ("card_declined", "generic_decline"),
    "pm_card_chargeDeclinedInsufficientFunds": ("card_declined", "insufficient_funds"),
    "pm_card_visa_chargeDeclinedInsufficientFunds": ("card_declined", "insufficient_funds"),
    "pm_card_chargeDeclinedLostCard": ("card_declined", "lost_card"),
    "pm_card_visa_chargeDeclinedLostCard": ("card_declined", "lost_card"),
    "pm_card_chargeDeclinedStolenCard": ("card_declined", "stolen_card"),
    "pm_card_visa_chargeDeclinedStolenCard": ("card_declined", "stolen_card"),
    "pm_card_visa_chargeDeclinedVelocityLimitExceeded": ("card_declined", "card_velocity_exceeded"),
    "pm_card_chargeDeclinedExpiredCard": ("expired_card", None),
    "pm_card_chargeDeclinedIncorrectCvc": ("incorrect_cvc", None),
    "pm_card_chargeDeclinedProcessingError": ("processing_error", None),
}


@pytest.mark.parametrize(
    ("name", "brand"),
    [
        ("pm_card_visa", "visa"),
        ("pm_card_visa_debit", "visa"),
        ("pm_card_mastercard", "mastercard"),
        ("pm_card_mastercard_debit", "mastercard"),
        ("pm_card_mastercard_prepaid", "mastercard"),
        ("pm_card_amex", "amex"),
        ("pm_card_discover", "discover"),
        ("pm_card_diners", "diners"),
        ("pm_card_jcb", "jcb"),
        ("pm_card_unionpay", "unionpay"),
    ],
)
def test_a_good_card_pays(stripe: Replica, name: str, brand: str):
    intent = stripe.post("/v1/payment_intents", **PI, payment_method=name)
    assert (intent["status"], intent["amount_received"]) == ("succeeded", 2000)
    method = stripe.get(f"/v1/payment_methods/{intent['payment_method']}")
    assert (method["card"]["brand"], method["id"][:3]) == (brand, "pm_")
    assert method["id"] != name


@pytest.mark.parametrize("name", DECLINES)
def test_a_bad_card_is_declined_with_its_reason(stripe: Replica, name: str):
    code, decline_code = DECLINES[name]
    status, error = stripe.refused("/v1/payment_intents", **PI, payment_method=name)
    assert (status, error["type"], error["code"]) == (402, "card_error", code)
    assert error.get("decline_code") == decline_code
    intent = error["payment_intent"]
    assert (intent["status"], intent["last_payment_error"]["code"]) == ("requires_payment_method", code)
    assert stripe.get(f"/v1/payment_intents/{intent['id']}")["status"] == "requires_payment_method"
    assert error["charge"].startswith("ch_")

    customer = stripe.customer(None)
    status, error = stripe.refused(f"/v1/payment_methods/{name}/attach", customer=customer)
    assert (status, error["code"], error.get("decline_code")) == (402, code, decline_code)


def test_a_card_that_fails_later_can_be_attached(stripe: Replica):
    customer = stripe.customer("pm_card_chargeCustomerFail")
    form = {"customer": customer, "items[0][price]": stripe.price()}
    status, error = stripe.refused("/v1/subscriptions", **form, payment_behavior="error_if_incomplete")
    assert (status, error["decline_code"]) == (402, "generic_decline")
    assert stripe.post("/v1/subscriptions", **form)["status"] == "incomplete"


def test_a_card_that_asks_for_its_holder_waits_for_him(stripe: Replica):
    intent = stripe.post("/v1/payment_intents", **PI, payment_method="pm_card_authenticationRequired")
    assert (intent["status"], intent["next_action"]["type"]) == ("requires_action", "use_stripe_sdk")


def test_a_test_card_is_a_new_method_each_time_but_not_in_a_retry(stripe: Replica):
    customer = stripe.customer(None)
    path = "/v1/payment_methods/pm_card_visa/attach"
    first = stripe.post(path, {"Idempotency-Key": f"{customer}-1"}, customer=customer)
    again = stripe.post(path, {"Idempotency-Key": f"{customer}-1"}, customer=customer)
    other = stripe.post(path, customer=customer)
    assert first["id"] == again["id"] != other["id"]
    assert len(stripe.get(f"/v1/customers/{customer}/payment_methods")["data"]) == 2


def test_a_retried_payment_is_one_charge_and_another_body_is_refused(stripe: Replica):
    key = {"Idempotency-Key": stripe.customer(None)}
    first = stripe.post("/v1/payment_intents", key, **PI, payment_method="pm_card_visa")
    again = stripe.post("/v1/payment_intents", key, **PI, payment_method="pm_card_visa")
    assert first == again
    status, error = stripe.refused("/v1/payment_intents", key, **{**PI, "amount": 1}, payment_method="pm_card_visa")
    assert (status, error["type"]) == (400, "idempotency_error")


def test_a_subscription_takes_a_test_card_as_its_own(stripe: Replica):
    subscription = stripe.subscribe(stripe.customer(None), stripe.price(), default_payment_method="pm_card_mastercard")
    assert subscription["status"] == "active"
    assert stripe.get(f"/v1/invoices/{subscription['latest_invoice']}")["amount_paid"] == 2999
