"""A subscription's life in the Stripe replica, over HTTP."""

import time
from typing import Any

import pytest
from stripe_server import Replica

DAY = 86_400


def moved(stripe: Replica, subscription: dict[str, Any], **how: Any) -> list[str]:
    """The types of the events that moving time on brought."""
    return [event["type"] for event in stripe.control("advance", subscription=subscription["id"], **how)["events"]]


def read(stripe: Replica, subscription: dict[str, Any]) -> dict[str, Any]:
    return stripe.get(f"/v1/subscriptions/{subscription['id']}")


def invoices(stripe: Replica, subscription: dict[str, Any]) -> list[dict[str, Any]]:
    return stripe.get("/v1/invoices", subscription=subscription["id"])["data"]


def period(subscription: dict[str, Any]) -> tuple[int, int]:
    item = subscription["items"]["data"][0]
    return item["current_period_start"], item["current_period_end"]


def fail_from_now_on(stripe: Replica, customer: str) -> None:
    method = stripe.post("/v1/payment_methods/pm_card_chargeCustomerFail/attach", customer=customer)["id"]
    stripe.post(f"/v1/customers/{customer}", **{"invoice_settings[default_payment_method]": method})


def test_a_period_ends_and_the_next_one_is_paid(stripe: Replica):
    subscription = stripe.subscribe(stripe.customer(), stripe.price())
    _, end = period(subscription)
    assert moved(stripe, subscription, to="period_end") == ["invoice.created", "customer.subscription.updated"]
    draft = invoices(stripe, subscription)[0]
    assert (draft["status"], draft["billing_reason"], draft["created"]) == ("draft", "subscription_cycle", end)
    assert moved(stripe, subscription, seconds=3_700) == [
        "invoice.finalized",
        "payment_intent.created",
        "charge.succeeded",
        "invoice.payment_succeeded",
        "invoice.paid",
        "payment_intent.succeeded",
    ]
    renewed = read(stripe, subscription)
    assert (renewed["status"], period(renewed)[0]) == ("active", end)
    paid = invoices(stripe, subscription)[0]
    assert (paid["status"], paid["amount_paid"], paid["lines"]["data"][0]["period"]["start"]) == ("paid", 2999, end)
    assert paid["number"] != invoices(stripe, subscription)[1]["number"]
    assert paid["status_transitions"]["finalized_at"] - end in range(3_600, 3_610)

    moved(stripe, subscription, to="renewal")
    assert len(invoices(stripe, subscription)) == 3
    # The third, alone, has but the plan on it.
    assert [line["amount"] for line in invoices(stripe, subscription)[0]["lines"]["data"]] == [2999]
    updated = [
        event
        for event in stripe.get("/v1/events", type="customer.subscription.updated", limit=100)["data"]
        if event["data"]["object"]["id"] == subscription["id"]
    ]
    previous = updated[0]["data"]["previous_attributes"]
    assert previous["items"]["data"][0]["current_period_end"] == period(renewed)[1]


def test_time_moves_for_one_customer_alone(stripe: Replica):
    mine = stripe.subscribe(stripe.customer(), stripe.price())
    theirs = stripe.subscribe(stripe.customer(), stripe.price())
    moved(stripe, mine, to="renewal")
    assert len(invoices(stripe, theirs)) == 1
    # What a moved customer does next happens in their own time.
    changed = stripe.post(f"/v1/subscriptions/{mine['id']}", cancel_at_period_end="true")
    assert changed["canceled_at"] > period(theirs)[1]
    assert (
        stripe.post(f"/v1/subscriptions/{theirs['id']}", cancel_at_period_end="true")["canceled_at"] < period(mine)[1]
    )


def test_a_trial_is_announced_and_ends_in_a_payment(stripe: Replica):
    subscription = stripe.subscribe(stripe.customer(), stripe.price(), trial_period_days=14)
    assert subscription["status"] == "trialing"
    assert moved(stripe, subscription, seconds=11 * DAY + 60) == ["customer.subscription.trial_will_end"]
    happened = moved(stripe, subscription, to="renewal")
    assert happened[:2] == ["invoice.created", "customer.subscription.updated"]
    assert happened[-2:] == ["invoice.paid", "payment_intent.succeeded"]
    assert read(stripe, subscription)["status"] == "active"


def test_a_trial_without_a_card_ends_unpaid(stripe: Replica):
    subscription = stripe.subscribe(stripe.customer(None), stripe.price(), trial_period_days=1)
    assert "invoice.payment_failed" in moved(stripe, subscription, to="renewal")
    assert read(stripe, subscription)["status"] == "past_due"


def test_a_cancellation_at_the_end_of_the_period(stripe: Replica):
    subscription = stripe.subscribe(stripe.customer(), stripe.price())
    path = f"/v1/subscriptions/{subscription['id']}"
    stripe.post(path, cancel_at_period_end="true")
    stripe.post(path, cancel_at_period_end="false")
    moved(stripe, subscription, to="renewal")
    asked = stripe.post(path, cancel_at_period_end="true")
    assert moved(stripe, subscription, to="renewal") == ["customer.subscription.deleted"]
    ended = read(stripe, subscription)
    assert (ended["status"], ended["ended_at"]) == ("canceled", period(asked)[1])
    assert ended["canceled_at"] == asked["canceled_at"]
    assert len(invoices(stripe, subscription)) == 2


def test_a_failed_renewal_recovers_by_a_new_card(stripe: Replica):
    customer = stripe.customer()
    subscription = stripe.subscribe(customer, stripe.price())
    fail_from_now_on(stripe, customer)
    happened = moved(stripe, subscription, to="renewal")
    assert happened[-4:] == [
        "charge.failed",
        "invoice.payment_failed",
        "payment_intent.payment_failed",
        "customer.subscription.updated",
    ]
    assert read(stripe, subscription)["status"] == "past_due"
    invoice = invoices(stripe, subscription)[0]
    assert (invoice["status"], invoice["attempt_count"]) == ("open", 1)
    assert moved(stripe, subscription, to=invoice["next_payment_attempt"]) == [
        "charge.failed",
        "invoice.payment_failed",
        "payment_intent.payment_failed",
    ]
    assert invoices(stripe, subscription)[0]["attempt_count"] == 2
    method = stripe.post("/v1/payment_methods/pm_card_visa/attach", customer=customer)["id"]
    stripe.post(f"/v1/customers/{customer}", **{"invoice_settings[default_payment_method]": method})
    happened = moved(stripe, subscription, to="last_retry")
    assert {"charge.succeeded", "invoice.paid", "customer.subscription.updated"} <= set(happened)
    assert read(stripe, subscription)["status"] == "active"
    assert invoices(stripe, subscription)[0]["attempt_count"] == 3


def test_a_renewal_that_is_never_paid_ends_as_was_chosen(stripe: Replica):
    for choice, status in (("cancel", "canceled"), ("mark_unpaid", "unpaid"), ("leave_past_due", "past_due")):
        customer = stripe.customer()
        subscription = stripe.subscribe(customer, stripe.price())
        fail_from_now_on(stripe, customer)
        moved(stripe, subscription, to="renewal", when_unpaid=choice)
        happened = moved(stripe, subscription, to="last_retry")
        assert happened.count("invoice.payment_failed") == 7
        assert read(stripe, subscription)["status"] == status
        assert invoices(stripe, subscription)[0]["status"] == "open"


def test_a_first_payment_that_fails_expires(stripe: Replica):
    subscription = stripe.subscribe(stripe.customer("pm_card_chargeCustomerFail"), stripe.price())
    assert subscription["status"] == "incomplete"
    assert moved(stripe, subscription, seconds=22 * 3_600) == []
    assert moved(stripe, subscription, seconds=2 * 3_600)[-1] == "customer.subscription.updated"
    assert read(stripe, subscription)["status"] == "incomplete_expired"


def test_a_scheduled_change_comes_with_the_next_period(stripe: Replica):
    expensive, cheap = stripe.price(9999), stripe.price(2999)
    subscription = stripe.subscribe(stripe.customer(), expensive)
    start, end = period(subscription)
    schedule = stripe.post("/v1/subscription_schedules", from_subscription=subscription["id"],
                           customer=subscription["customer"])  # fmt: skip
    stripe.post(
        f"/v1/subscription_schedules/{schedule['id']}",
        **{
            "phases[0][items][0][price]": expensive,
            "phases[0][start_date]": start,
            "phases[0][end_date]": end,
            "phases[1][items][0][price]": cheap,
            "phases[1][iterations]": 1,
            "end_behavior": "release",
        },
    )
    happened = moved(stripe, subscription, to="renewal")
    assert happened[:2] == ["customer.subscription.updated", "subscription_schedule.updated"]
    assert read(stripe, subscription)["items"]["data"][0]["price"]["id"] == cheap
    assert [line["amount"] for line in invoices(stripe, subscription)[0]["lines"]["data"]] == [2999]
    assert "subscription_schedule.released" in moved(stripe, subscription, to="renewal")
    assert stripe.get(f"/v1/subscription_schedules/{schedule['id']}")["status"] == "released"
    assert read(stripe, subscription)["schedule"] is None


def test_an_upgrade_in_the_middle_of_a_period_is_prorated(stripe: Replica):
    cheap, expensive = stripe.price(2999), stripe.price(9999)
    subscription = stripe.subscribe(stripe.customer(), cheap)
    start, end = period(subscription)
    moved(stripe, subscription, to=(start + end) // 2)
    changed = stripe.post(
        f"/v1/subscriptions/{subscription['id']}",
        **{
            "items[0][id]": subscription["items"]["data"][0]["id"],
            "items[0][price]": expensive,
            "proration_behavior": "always_invoice",
        },
    )
    assert changed["items"]["data"][0]["price"]["id"] == expensive
    invoice = invoices(stripe, subscription)[0]
    assert (invoice["status"], invoice["billing_reason"]) == ("paid", "subscription_update")
    assert abs(invoice["amount_paid"] - 3500) < 5


def upgrade(subscription: dict[str, Any], price: str) -> dict[str, str]:
    """The form of an upgrade that begins a new period, or else is refused."""
    return {
        "items[0][id]": subscription["items"]["data"][0]["id"],
        "items[0][price]": price,
        "proration_behavior": "always_invoice",
        "billing_cycle_anchor": "now",
        "payment_behavior": "error_if_incomplete",
    }


def test_an_upgrade_that_begins_a_period_is_billed_for_all_of_it(stripe: Replica):
    cheap, expensive = stripe.price(2999), stripe.price(9999)
    subscription = stripe.subscribe(stripe.customer(), cheap)
    start, end = period(subscription)
    moved(stripe, subscription, to=(start + end) // 2)
    changed = stripe.post(f"/v1/subscriptions/{subscription['id']}", **upgrade(subscription, expensive))
    assert period(changed)[0] - (start + end) // 2 in range(10)
    assert 28 * DAY <= period(changed)[1] - period(changed)[0] <= 31 * DAY
    invoice = invoices(stripe, subscription)[0]
    assert (invoice["status"], invoice["billing_reason"]) == ("paid", "subscription_update")
    amounts = sorted(line["amount"] for line in invoice["lines"]["data"])
    assert amounts[1] == 9999 and abs(amounts[0] + 1500) < 5
    moved(stripe, changed, to="renewal")
    assert [line["amount"] for line in invoices(stripe, subscription)[0]["lines"]["data"]] == [9999]


@pytest.mark.parametrize(
    ("card", "code", "decline_code"),
    [
        ("pm_card_chargeCustomerFail", "card_declined", "generic_decline"),
        ("pm_card_authenticationRequired", "subscription_payment_intent_requires_action", None),
        (None, "resource_missing", None),
    ],
)
def test_an_upgrade_whose_payment_fails_changes_nothing_if_that_is_asked_for(
    stripe: Replica, card: str | None, code: str, decline_code: str | None
):
    cheap, expensive = stripe.price(2999), stripe.price(9999)
    customer = stripe.customer(card)
    subscription = stripe.subscribe(customer, cheap, default_payment_method="pm_card_visa")
    path = f"/v1/subscriptions/{subscription['id']}"
    before = stripe.post(path, default_payment_method="")
    status, error = stripe.refused(path, **upgrade(subscription, expensive))
    assert (status, error["code"]) == (402 if card else 400, code)
    assert error.get("decline_code") == decline_code
    assert read(stripe, subscription) == before
    assert len(invoices(stripe, subscription)) == 1


def test_events_of_a_time_to_come_are_listed_as_new(stripe: Replica):
    subscription = stripe.subscribe(stripe.customer(), stripe.price())
    answer = stripe.control("advance", subscription=subscription["id"], to="renewal")
    ids = [event["id"] for event in answer["events"]]
    now = int(time.time())
    query = {"created[gte]": now - 60, "created[lte]": now + 60, "limit": 100}
    assert [row["id"] for row in stripe.get("/v1/events", **query)["data"]][: len(ids)] == ids[::-1]
    _, end = period(subscription)
    assert [event["happened"] >= end for event in answer["events"]] == [True] * len(ids)
    assert stripe.get(f"/v1/events/{ids[0]}")["data"]["object"]["created"] == end


def test_a_life_may_begin_days_ago(stripe: Replica):
    customer = stripe.customer()
    stripe.control("advance", customer=customer, seconds=-86_400)
    subscription = stripe.subscribe(customer, stripe.price())
    day_ago = int(time.time()) - 86_400
    assert abs(subscription["created"] - day_ago) < 30
    [invoice] = stripe.get("/v1/invoices", customer=customer)["data"]
    assert abs(invoice["status_transitions"]["paid_at"] - day_ago) < 30


def test_wrong_moves_are_refused(stripe: Replica):
    for body in (b"{}", b'{"customer": "cus_nobody", "to": 1}', b'{"subscription": "sub_1", "to": "renewal"}'):
        assert stripe.send("POST", "/_replica/advance", body)[0] == 400
    customer = stripe.customer()
    stripe.subscribe(customer, stripe.price())
    for more in ('"to": 1', '"to": "renewal"', '"seconds": -5', '"seconds": 1, "when_unpaid": "cry"'):
        assert stripe.send("POST", "/_replica/advance", f'{{"customer": "{customer}", {more}}}'.encode())[0] == 400


def test_an_invoice_that_was_given_up_may_be_voided(stripe: Replica):
    customer = stripe.customer()
    subscription = stripe.subscribe(customer, stripe.price())
    fail_from_now_on(stripe, customer)
    moved(stripe, subscription, to="renewal")
    path = f"/v1/invoices/{invoices(stripe, subscription)[0]['id']}"
    assert stripe.post(f"{path}/mark_uncollectible")["status"] == "uncollectible"
    assert stripe.post(f"{path}/void")["status"] == "void"
    assert stripe.refused(f"{path}/void")[0] == 400


def test_a_subscription_is_billed_flexibly_unless_it_is_made_otherwise(stripe: Replica):
    customer, price = stripe.customer(), stripe.price()
    assert stripe.subscribe(customer, price)["billing_mode"]["type"] == "flexible"
    classic = stripe.subscribe(customer, price, **{"billing_mode[type]": "classic"})
    assert read(stripe, classic)["billing_mode"]["type"] == "classic"


def test_who_deletes_a_customer_ends_what_they_subscribed_to(stripe: Replica):
    customer = stripe.customer()
    subscription = stripe.subscribe(customer, stripe.price())
    assert stripe.send("DELETE", f"/v1/customers/{customer}")[0] == 200
    assert read(stripe, subscription)["status"] == "canceled"
    told = [event["type"] for event in stripe.get("/_replica/webhooks", customer=customer)["data"]]
    assert told[-2:] == ["customer.subscription.deleted", "customer.deleted"]
