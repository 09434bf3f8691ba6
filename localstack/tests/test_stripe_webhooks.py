"""Deliveries of the Stripe replica, over HTTP."""

import hashlib
import hmac

from stripe_server import SECRET, Receiver, Replica, eventually


def types(receiver: Receiver, customer: str) -> list[str]:
    return [event["type"] for event in receiver.events(customer)]


def settled(stripe: Replica, customer: str) -> bool:
    return stripe.get("/_replica/webhooks", customer=customer)["waiting"] == 0


def test_events_arrive_signed_and_in_order(stripe: Replica):
    customer = stripe.customer()
    stripe.subscribe(customer, stripe.price())
    eventually(lambda: settled(stripe, customer))
    listed = stripe.get("/_replica/webhooks", customer=customer)["data"]
    assert [row["event"] for row in listed] == [event["id"] for event in stripe.receiver.events(customer)]
    assert {row["state"] for row in listed} == {"delivered"}
    assert listed[0]["type"] == "customer.created"
    assert "customer.subscription.created" in types(stripe.receiver, customer)
    headers, body = next(request for request in stripe.receiver.requests if customer.encode() in request[1])
    stamp, digest = (part.split("=", 1)[1] for part in headers["Stripe-Signature"].split(","))
    assert digest == hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()


def test_what_is_not_taken_comes_again_even_after_a_restart(tmp_path):
    receiver = Receiver()
    receiver.status = 503
    replica = Replica(tmp_path, receiver)
    try:
        customer = replica.customer(None)
        eventually(lambda: replica.get("/_replica/webhooks", customer=customer)["data"][0]["attempts"] >= 2)
        replica.stop(kill=True)
        replica.start()
        assert replica.get(f"/v1/customers/{customer}")["email"] == "a@example.com"
        receiver.status = 200
        eventually(lambda: settled(replica, customer))
        assert replica.get("/_replica/webhooks", customer=customer)["data"][0]["state"] == "delivered"
        # Ids of the new life differ from those of the old one.
        assert replica.customer(None) != customer
    finally:
        replica.stop()


def test_events_can_be_held_and_let_go_in_any_order(stripe: Replica):
    customer = stripe.customer(None)
    eventually(lambda: settled(stripe, customer))
    stripe.control("webhooks", customer=customer, mode="hold")
    stripe.subscribe(customer, stripe.price(), default_payment_method="pm_card_visa")
    before = len(stripe.receiver.events(customer))
    released = stripe.control("webhooks/release", customer=customer, order="reversed")["events"]
    eventually(lambda: settled(stripe, customer))
    arrived = [event["id"] for event in stripe.receiver.events(customer)][before:]
    assert arrived == released
    created = [row["event"] for row in stripe.get("/_replica/webhooks", customer=customer)["data"]][before:]
    assert arrived == created[::-1]


def test_events_can_come_twice_or_never(stripe: Replica):
    customer = stripe.customer(None)
    eventually(lambda: settled(stripe, customer))
    for mode, copies in (("duplicate", 2), ("drop", 0), ("shuffle", 1), ("ordered", 1)):
        stripe.control("webhooks", customer=customer, mode=mode)
        before = len(stripe.receiver.events(customer))
        stripe.post(f"/v1/customers/{customer}", name=mode)
        eventually(lambda: settled(stripe, customer))
        assert len(stripe.receiver.events(customer)) - before == copies, mode
    listed = stripe.get("/_replica/webhooks", customer=customer)["data"]
    assert [row["state"] for row in listed].count("dropped") == 1
    # Another customer's were not touched.
    other = stripe.customer(None)
    eventually(lambda: settled(stripe, other))
    assert types(stripe.receiver, other) == ["customer.created"]


def test_named_events_are_posted_at_once_in_the_order_given(stripe: Replica):
    customer = stripe.customer()
    eventually(lambda: settled(stripe, customer))
    ids = [row["event"] for row in stripe.get("/_replica/webhooks", customer=customer)["data"]]
    before = len(stripe.receiver.events(customer))
    wanted = [ids[-1], ids[0], ids[-1]]
    answers = stripe.control("webhooks/deliver", events=wanted)["deliveries"]
    assert [answer["status"] for answer in answers] == [200, 200, 200]
    assert [event["id"] for event in stripe.receiver.events(customer)][before:] == wanted
    assert stripe.send("POST", "/_replica/webhooks/deliver", b'{"events": ["evt_0"]}')[0] == 400
    assert stripe.send("POST", "/_replica/webhooks", b'{"mode": "louder"}')[0] == 400


def test_events_are_listed_by_time_page_by_page(stripe: Replica):
    customer = stripe.customer()
    newest = stripe.get("/v1/events", limit=1)["data"][0]
    assert stripe.get(f"/v1/events/{newest['id']}") == newest
    since = stripe.get(f"/v1/customers/{customer}")["created"]
    seen, after = [], {}
    while True:
        page = stripe.get("/v1/events", limit=2, **{"created[gte]": since}, **after)
        seen += page["data"]
        if not page["has_more"]:
            break
        after = {"starting_after": page["data"][-1]["id"]}
    assert seen[0]["id"] == newest["id"]
    assert len({event["id"] for event in seen}) == len(seen)
    assert any(event["data"]["object"]["id"] == customer for event in seen)
    far = since + 100 * 365 * 86_400
    assert stripe.get("/v1/events", **{"created[gt]": far})["data"] == []
