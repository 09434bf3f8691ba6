"""Checkout, portal and invoices of the Stripe replica, as a person and a program see them."""

import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode

import pytest
from stripe_server import Replica, eventually


class Stay(urllib.request.HTTPRedirectHandler):
    """Redirections are looked at, not followed."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


def browse(url: str, by: dict[str, str] | None = None, /, **form: str) -> tuple[int, str, str]:
    """Status, text and where to go next; `by` is what a browser says of the page that asks."""
    body = urlencode(form).encode() if form else None
    try:
        with urllib.request.build_opener(Stay()).open(urllib.request.Request(url, body, by or {})) as reply:
            return reply.status, reply.read().decode("latin-1"), ""
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("latin-1"), error.headers.get("Location", "")


def checkout(stripe: Replica, **more: Any) -> dict[str, Any]:
    form = {
        "mode": "subscription",
        "success_url": "http://app.test/ok?session={CHECKOUT_SESSION_ID}",
        "cancel_url": "http://app.test/no",
        "client_reference_id": "user-1",
        **more,
    }
    return stripe.post("/v1/checkout/sessions", **form)


def received(stripe: Replica, customer: str) -> list[str]:
    eventually(lambda: stripe.get("/_replica/webhooks", customer=customer)["waiting"] == 0)
    return [event["type"] for event in stripe.receiver.events(customer)]


def test_a_person_subscribes_on_the_page(stripe: Replica):
    customer = stripe.customer(None)
    session = checkout(
        stripe,
        customer=customer,
        **{"line_items[0][price]": stripe.price(), "line_items[0][quantity]": 1, "metadata[a]": "b",
           "subscription_data[metadata][user]": "u1"},
    )  # fmt: skip
    assert (session["status"], session["payment_status"], session["amount_total"]) == ("open", "unpaid", 2999)
    assert "29.99 USD" in browse(session["url"])[1]

    status, text, _ = browse(session["url"], card="pm_card_chargeDeclinedInsufficientFunds")
    assert (status, "insufficient funds" in text) == (402, True)
    assert browse(session["url"], card="pm_card_chargeCustomerFail")[0] == 402
    assert stripe.get(f"/v1/customers/{customer}/payment_methods")["data"] == []
    assert stripe.get("/v1/subscriptions", customer=customer)["data"] == []

    status, _, location = browse(session["url"], card="pm_card_visa")
    assert (status, location) == (303, f"http://app.test/ok?session={session['id']}")
    done = stripe.get(f"/v1/checkout/sessions/{session['id']}", **{"expand[]": "subscription"})
    assert (done["status"], done["payment_status"], done["url"]) == ("complete", "paid", None)
    assert (done["client_reference_id"], done["metadata"]) == ("user-1", {"a": "b"})
    subscription = done["subscription"]
    assert (subscription["status"], subscription["metadata"]) == ("active", {"user": "u1"})
    assert stripe.get(f"/v1/invoices/{done['invoice']}")["status"] == "paid"
    assert received(stripe, customer)[-1] == "checkout.session.completed"
    assert browse(f"{stripe.url}/checkout/{session['id']}", card="pm_card_visa")[0] == 410
    assert len(stripe.get("/v1/subscriptions", customer=customer)["data"]) == 1
    listed = stripe.get("/v1/checkout/sessions", customer=customer)["data"]
    assert [row["id"] for row in listed] == [session["id"]]
    assert stripe.get(f"/v1/checkout/sessions/{session['id']}/line_items")["data"][0]["amount_total"] == 2999


def test_a_checkout_may_begin_with_a_trial_and_make_its_customer(stripe: Replica):
    trial = {"trial_period_days]": 7, "trial_settings][end_behavior][missing_payment_method]": "cancel"}
    data = {f"subscription_data[{name}": value for name, value in trial.items()}
    session = checkout(stripe, **{"line_items[0][price]": stripe.price()}, **data)
    assert browse(session["url"], card="pm_card_visa", email="new@example.com")[0] == 303
    done = stripe.get(f"/v1/checkout/sessions/{session['id']}")
    assert done["payment_status"] == "no_payment_required"
    made = stripe.get(f"/v1/subscriptions/{done['subscription']}")
    assert made["status"] == "trialing"
    assert made["trial_settings"] == {"end_behavior": {"missing_payment_method": "cancel"}}
    assert stripe.get(f"/v1/customers/{done['customer']}")["email"] == "new@example.com"


def test_a_checkout_takes_one_payment_or_only_a_card(stripe: Replica):
    customer = stripe.customer(None)
    once = {"price_data][currency": "usd", "price_data][unit_amount": 500, "price_data][product_data][name": "Credits"}
    lines = {f"line_items[0][{name}]": value for name, value in once.items()}
    paid = checkout(stripe, mode="payment", customer=customer, **lines)
    assert browse(paid["url"], card="pm_card_visa")[0] == 303
    intent = stripe.get(f"/v1/checkout/sessions/{paid['id']}")["payment_intent"]
    assert stripe.get(f"/v1/payment_intents/{intent}")["amount_received"] == 500
    saved = checkout(stripe, mode="setup", customer=customer)
    assert browse(saved["url"], card="pm_card_visa")[0] == 303
    setup = stripe.get(f"/v1/checkout/sessions/{saved['id']}")["setup_intent"]
    assert stripe.get(f"/v1/setup_intents/{setup}")["status"] == "succeeded"


def test_a_checkout_can_be_ended_and_wrong_ones_are_refused(stripe: Replica):
    customer, price = stripe.customer(None), stripe.price()
    good = {"mode": "subscription", "customer": customer, "line_items[0][price]": price, "success_url": "http://a.test"}
    key = {"Idempotency-Key": f"checkout-{customer}"}
    session = stripe.post("/v1/checkout/sessions", key, **good)
    assert stripe.post("/v1/checkout/sessions", key, **good) == session
    assert stripe.refused("/v1/checkout/sessions", key, **good, locale="de")[0] == 400
    assert stripe.post(f"/v1/checkout/sessions/{session['id']}/expire")["status"] == "expired"
    assert stripe.refused(f"/v1/checkout/sessions/{session['id']}/expire")[0] == 400
    assert received(stripe, customer)[-1] == "checkout.session.expired"
    assert browse(f"{stripe.url}/checkout/{session['id']}")[0] == 410
    for change in ({"mode": "gift"}, {"success_url": "javascript:alert(1)"}, {"line_items[0][price]": "price_none"},
                   {"customer": "cus_none"}, {"mode": "payment"}):  # fmt: skip
        assert stripe.refused("/v1/checkout/sessions", **{**good, **change})[0] in (400, 404)
    assert stripe.send("GET", "/v1/checkout/sessions/cs_test_none")[0] == 404
    assert browse(f"{stripe.url}/checkout/cs_test_none")[0] == 404


def test_the_pages_escape_what_they_show(stripe: Replica):
    form = {"currency": "usd", "unit_amount": 100, "product_data[name]": "<script>x</script>"}
    price = stripe.post("/v1/prices", **form)["id"]
    session = checkout(
        stripe, mode="payment", customer=stripe.customer(None), cancel_url='http://a.test/"><b>',
        **{"line_items[0][price]": price},
    )  # fmt: skip
    text = browse(session["url"])[1]
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert "<b>" not in text


def test_a_person_manages_a_subscription_in_the_portal(stripe: Replica):
    customer, cheap, dear = stripe.customer(), stripe.price(2999), stripe.price(9999)
    subscription = stripe.subscribe(customer, cheap)
    form = {"customer": customer, "return_url": "http://app.test/billing"}
    url = stripe.post("/v1/billing_portal/sessions", **form)["url"]
    text = browse(url)[1]
    invoice = stripe.get(f"/v1/invoices/{subscription['latest_invoice']}")
    assert invoice["number"] in text
    assert 'href="http://app.test/billing"' in text
    path, name = f"/v1/subscriptions/{subscription['id']}", subscription["id"]
    assert browse(url, do="cancel", subscription=name)[0] == 303
    canceled = stripe.get(path)
    end = canceled["items"]["data"][0]["current_period_end"]
    assert (canceled["cancel_at"], canceled["cancel_at_period_end"]) == (end, False)
    assert 'value="resume"' in browse(url)[1]
    assert browse(url, do="resume", subscription=name)[0] == 303
    assert stripe.get(path)["cancel_at"] is None
    # However it was asked for, it is taken back.
    assert stripe.post(path, cancel_at_period_end="true")["cancel_at"] == end
    assert browse(url, do="resume", subscription=name)[0] == 303
    assert stripe.get(path)["cancel_at_period_end"] is False
    assert stripe.post(path, cancel_at=str(end))["cancel_at"] == end
    assert stripe.post(path, cancel_at="")["cancel_at"] is None
    assert browse(url, do="switch", subscription=name, price=dear)[0] == 303
    assert stripe.get(path)["items"]["data"][0]["price"]["id"] == dear
    before = stripe.get(f"/v1/customers/{customer}")["invoice_settings"]["default_payment_method"]
    assert browse(url, do="card", card="pm_card_chargeDeclined")[0] == 402
    assert browse(url, do="card", card="pm_card_mastercard")[0] == 303
    assert stripe.get(f"/v1/customers/{customer}")["invoice_settings"]["default_payment_method"] != before
    # Nobody else's subscription can be touched.
    other = stripe.subscribe(stripe.customer(), cheap)
    browse(url, do="cancel", subscription=other["id"])
    assert stripe.get(f"/v1/subscriptions/{other['id']}")["cancel_at"] is None
    assert stripe.refused("/v1/billing_portal/sessions", customer="cus_none")[0] == 404


def test_an_invoice_can_be_read_and_paid(stripe: Replica):
    customer = stripe.customer("pm_card_chargeCustomerFail")
    subscription = stripe.subscribe(customer, stripe.price())
    invoice = stripe.get(f"/v1/invoices/{subscription['latest_invoice']}")
    assert invoice["hosted_invoice_url"] == f"{stripe.url}/invoice/{invoice['id']}"
    assert browse(invoice["hosted_invoice_url"], card="pm_card_chargeDeclined")[0] == 402
    status, error = stripe.refused(f"/v1/invoices/{invoice['id']}/pay")
    assert (status, error["decline_code"]) == (402, "generic_decline")
    assert browse(invoice["hosted_invoice_url"], card="pm_card_visa")[0] == 303
    assert stripe.get(f"/v1/subscriptions/{subscription['id']}")["status"] == "active"
    assert invoice["number"] in browse(invoice["hosted_invoice_url"])[1]
    status, pdf, _ = browse(invoice["invoice_pdf"])
    assert (status, pdf[:5], invoice["number"] in pdf) == (200, "%PDF-", True)


def test_pages_of_others_lead_to_stripes_pages_and_do_nothing_there(stripe: Replica):
    customer = stripe.customer()
    session = checkout(stripe, customer=customer, **{"line_items[0][price]": stripe.price(),
                                                     "line_items[0][quantity]": 1})  # fmt: skip
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    other = {**link, "Origin": "https://evil.example", "Content-Type": "text/plain"}
    assert browse(session["url"], link)[0] == 200
    assert browse(session["url"], other, card="pm_card_visa")[0] == 403
    assert browse(f"{stripe.url}/_replica/webhooks", link)[0] == 403
    assert browse(f"{stripe.url}/_replica/webhooks", other, mode="drop")[0] == 403
    own = {"Sec-Fetch-Site": "same-origin", "Origin": stripe.url}
    assert browse(session["url"], own, card="pm_card_visa")[0] == 303


@pytest.mark.parametrize("amount", [500, None])
def test_money_goes_back(stripe: Replica, amount: int | None):
    customer = stripe.customer()
    intent = stripe.post("/v1/payment_intents", amount=2000, currency="usd", customer=customer, confirm="true",
                         payment_method="pm_card_visa", **{"payment_method_types[]": "card"})  # fmt: skip
    form = {"amount": amount} if amount else {}
    refund = stripe.post("/v1/refunds", payment_intent=intent["id"], **form)
    assert (refund["status"], refund["amount"]) == ("succeeded", amount or 2000)
    assert stripe.get(f"/v1/charges/{intent['latest_charge']}")["amount_refunded"] == (amount or 2000)
    assert "charge.refunded" in received(stripe, customer)
